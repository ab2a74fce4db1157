import json
import math
import time

import pytest

from extract.errors import ClipError
from extract.inputs.transcripts import Word, read_transcript


def read(tmp_path, name, text, encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return read_transcript(path)


def test_a_table_of_words(tmp_path):
    """In the order in which they begin; a byte order mark, Windows line ends, blanks and quotes are no obstacle."""
    text = '\ufeffWord,start_s,end_s\r\n blue ,1.5,1.75\r\n\r\nbin,0,0.25\r\n"a, b",1,1e0\r\n😀,2.5,2.5\r\n   ,3,4\r\n'
    assert read(tmp_path, "a.csv", text).words == (
        Word("bin", 0, 0.25),
        Word("a, b", 1, 1),
        Word("blue", 1.5, 1.75),
        Word("😀", 2.5, 2.5),
    )


def test_words_may_overlap(tmp_path):
    """Two people at once."""
    words = read(tmp_path, "a.csv", "word,start_s,end_s\nlong,0,9\nshort,1,2\n").words
    assert [(word.text, word.start_s, word.end_s) for word in words] == [("long", 0, 9), ("short", 1, 2)]


@pytest.mark.parametrize("name", ["a.csv", "a.srt", "a.vtt"])
def test_nothing_said_is_a_transcript(tmp_path, name):
    assert read(tmp_path, name, {"a.csv": "word,start_s,end_s\n", "a.srt": "", "a.vtt": "WEBVTT\n"}[name]).words == ()


SRT = """\
1
00:00:01,000 --> 00:00:02,000
<i>Bin</i> blue &amp; {\\an8}red

2
01:00:00,500 --> 01:00:01,500 X1:40
now
"""


def test_subtitles_share_their_time_by_letters(tmp_path):
    """Closed form: 3 + 4 + 1 + 3 letters in one second."""
    transcript = read(tmp_path, "a.srt", SRT)
    assert [word.text for word in transcript.words] == ["Bin", "blue", "&", "red", "now"]
    starts = [1 + letters / 11 for letters in (0, 3, 7, 8)] + [3600.5]
    ends = [1 + letters / 11 for letters in (3, 7, 8, 11)] + [3601.5]
    assert [word.start_s for word in transcript.words] == pytest.approx(starts, abs=1e-12)
    assert [word.end_s for word in transcript.words] == pytest.approx(ends, abs=1e-12)
    assert transcript.notes == {"spread_words": 4}  # "now" has a cue of its own
    assert read(tmp_path, "b.srt", SRT.replace("\n", "\r\n")).words == transcript.words


def test_word_times_inside_a_cue_count(tmp_path):
    """WebVTT as speech recognisers write it."""
    vtt = """\
WEBVTT - a title
Kind: captions

NOTE a remark
over two lines

first cue
00:01.000 --> 00:03.000 align:start
bin<00:00:01.500><c> blue</c><00:00:02.000><c> at F</c>
"""
    transcript = read(tmp_path, "a.vtt", vtt)
    assert transcript.words == (
        Word("bin", 1, 1.5),
        Word("blue", 1.5, 2),
        Word("at", 2, pytest.approx(2 + 2 / 3)),
        Word("F", pytest.approx(2 + 2 / 3), 3),
    )
    assert transcript.notes == {"spread_words": 2}


def test_whispers_json(tmp_path):
    """With word times where they were asked for, else a segment is a subtitle."""
    whole = {
        "text": "...",
        "segments": [
            {"start": 2.0, "end": 3.0, "text": " ab cd"},
            {"start": 0, "end": 1, "text": " x y", "words": [{"word": " x", "start": 0, "end": 0.4, "probability": 1}]},
        ],
    }
    transcript = read(tmp_path, "a.json", json.dumps(whole))
    assert transcript.words == (Word("x", 0, 0.4), Word("ab", 2, 2.5), Word("cd", 2.5, 3))
    assert transcript.notes == {"spread_words": 2}


def test_a_word_of_5000_letters_is_a_word(tmp_path):
    assert len(read(tmp_path, "a.csv", f"word,start_s,end_s\n{'a' * 5000},0,1\n").words[0].text) == 5000


HEADER = "word,start_s,end_s\n"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "", r"a\.csv:1: found an empty file, expected a header word,start_s,end_s"),
        ("a.csv", "word,start\na,1\n", r"a\.csv:1: found 'word,start', expected a header"),
        ("a.csv", HEADER + "a,nan,1\n", r"a\.csv:2: found time nan, expected seconds from 0 to 1e\+06"),
        ("a.csv", HEADER + "a,0,inf\n", r"a\.csv:2: found time inf"),
        ("a.csv", HEADER + "a,0,1\n\nb,2,1\n", r"a\.csv:4: found an end at 1 s before the start at 2 s"),
        ("a.csv", HEADER + "a,-1,1\n", r"a\.csv:2: found time -1"),
        ("a.csv", HEADER + "a,0,5000000\n", r"a\.csv:2: found time 5e\+06"),
        ("a.csv", HEADER + "a,0:01,1\n", r"a\.csv:2: found time '0:01', expected seconds"),
        (
            "a.csv",
            HEADER + "well, yes,0,1\n",
            r"a\.csv:2: found 4 columns, expected word,start_s,end_s; quote words with commas",
        ),
        ("a.csv", HEADER + "a,1\n", r"a\.csv:2: found 2 columns"),
        ("a.srt", "1\n00:00:02,000 -> 00:00:03,000\na\n", r"a\.srt:1: found '1', expected a cue"),
        ("a.srt", "1\n00:00:02 --> 00:00:03,000\na\n", r"a\.srt:2: found '00:00:02 --> 00:00:03,000', expected"),
        ("a.srt", "1\n00:00:03,000 --> 00:00:02,000\na\n", r"a\.srt:2: found an end at 2 s before the start at 3 s"),
        ("a.vtt", "WEBVTT\n\n00:01.000 --> 00:02.000\na<00:00:05.000>b\n", r"a\.vtt:3: found an end at 5 s|before the"),
        ("a.json", "{", r"a\.json:1: found invalid JSON"),
        ("a.json", "[]", r"a\.json:1: found '\[\]', expected an object with a list `segments`"),
        ("a.json", '{"segments": [1]}', r"a\.json, segment 0: found 1, expected an object"),
        ("a.json", '{"segments": [{"start": "0", "end": 1, "text": "a"}]}', "segment 0: found time '0', expected sec"),
        ("a.json", '{"segments": [{"start": 0, "end": NaN, "text": "a"}]}', "segment 0: found time nan"),
        ("a.json", '{"segments": [{"start": 0, "end": 1}]}', "segment 0: found text None, expected text"),
        ("a.json", '{"segments": [{"words": [2]}]}', "segment 0: found 2, expected a word as an object"),
        ("a.srt", f"1\n{'9' * 5000}:00:00,000 --> 00:00:03,000\na\n", r"a\.srt:2: found '9999"),
        ("a.json", "[" * 200_000, r"a\.json:1: found invalid JSON"),
        ("a.json", '{"segments": ' * 100_000, r"a\.json:1: found invalid JSON"),
        ("a.json", f'{{"segments": [{{"start": 0, "end": 1{"0" * 400}, "text": "a"}}]}}', "segment 0: found time 1000"),
        (
            "a.json",
            f'{{"segments": [{{"start": 0, "end": {"1" * 5000}, "text": "a"}}]}}',
            r"a\.json:1: found invalid JSON",
        ),
        ("a.json", '{"segments": [{"start": 0, "end": 1, "text": "a \\ud800"}]}', r"found '\\ud800', which is no text"),
        ("a.txt", "hello", r"a\.txt: found suffix '\.txt', expected \.csv, \.srt, \.vtt, \.json"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path, name, text, message):
    with pytest.raises(ClipError, match=message) as refused:
        read(tmp_path, name, text)
    assert refused.value.reason == "bad_transcript"


def test_bytes_that_are_no_text(tmp_path):
    with pytest.raises(ClipError, match=r"a\.csv:2: found bytes that are not UTF-8 text") as refused:
        read(tmp_path, "a.csv", HEADER + "Grüße,0,1\n", encoding="latin-1")
    assert refused.value.reason == "bad_transcript"


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ClipError, match="no such transcript") as refused:
        read_transcript(tmp_path / "a.srt")
    assert refused.value.reason == "missing_file"
    (tmp_path / "b.srt").mkdir()
    with pytest.raises(ClipError, match="cannot read the transcript") as refused:
        read_transcript(tmp_path / "b.srt")
    assert refused.value.reason == "unreadable"


@pytest.mark.parametrize("opening", ["<", "{\\"])
def test_tags_that_never_close_are_text_and_take_no_time(tmp_path, opening):
    cue = "WEBVTT\n\n00:00.000 --> 00:01.000\n"
    began = time.process_time()
    transcript = read(tmp_path, "a.vtt", cue + opening * 200_000)  # minutes where each is looked for to the end
    assert time.process_time() - began < 10
    assert transcript.words == (Word(opening * 200_000, 0, 1),)
    assert read(tmp_path, "b.vtt", cue + "<c.big>a</c> {\\an8}b").words == (Word("a", 0, 0.5), Word("b", 0.5, 1))


def test_times_are_numbers_that_survive(tmp_path):
    """As written, to the last bit."""
    (word,) = read(tmp_path, "a.csv", f"{HEADER}a,{math.pi!r},{math.tau!r}\n").words
    assert (word.start_s, word.end_s) == (math.pi, math.tau)

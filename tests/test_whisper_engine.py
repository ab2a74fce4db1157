"""What the engine whisper asks of its network, in batches, on random weights and on real recordings."""

import logging
import zlib
from dataclasses import replace

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from extract.errors import ConfigError
from extract.inputs.media.audio import read_audio
from extract.recognition import whisper as engine_module
from extract.recognition import words as words_module
from extract.recognition.whisper import (
    MOST_TEXT_TOKENS,
    Whisper,
    most_tokens,
)
from tests.toy_whisper import HZ, JFK, Answer, babbler, drawn, noise, stub, whole


@pytest.fixture
def toy(tmp_path):
    return babbler(tmp_path)


@pytest.fixture
def unguarded(monkeypatch):
    """Random weights babble: guards off, so that words are compared and not nothing with nothing."""
    monkeypatch.setattr(engine_module, "is_invented", lambda *_: False)
    for module in (engine_module, words_module):
        monkeypatch.setattr(module, "is_repetitive", lambda _: False)


# ---- what the network is asked -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unguarded")
def test_a_pieces_words_do_not_depend_on_its_batch(toy):
    pieces = [noise(length, seed=number) for number, length in enumerate([3.3, 6, 0.4, 6, 1, 9])]
    expected = [toy.recognise([piece])[0] for piece in pieces]
    assert sum(len(heard.words) for heard in expected) > 20
    assert len({heard.words for heard in expected}) == len(pieces)
    assert toy.recognise(pieces) == expected
    assert toy.recognise(pieces[::-1]) == expected[::-1]
    toy._batch = 2
    assert toy.recognise(pieces) == expected
    assert toy.recognise([]) == []


def test_a_short_text_does_not_depend_on_a_longer_ones(tmp_path):
    """The longer text's steps go on behind the end of the shorter one."""
    long = replace(JFK, starts=range(0, 30 * 40, 30))
    short = Answer(" Yes. No.", 0.1, -0.2, starts=(0, 10, 30, 40, 70))
    made = stub(tmp_path, lambda mel: long if mel.max(0).values[2000:].std() > 0.01 else short)
    alone = made.engine.recognise([noise(2)])
    together = made.engine.recognise([noise(28), noise(2), noise(28, seed=1)])
    assert [word.text for word in alone[0].words] == ["Yes.", "No."]
    assert together[1] == alone[0]


def test_each_piece_is_encoded_once_and_steps_end_with_the_longest_text(tmp_path):
    texts = {3: " Yes. No.", 6: " Thank you.", 12: JFK.text, 13: " ask not"}
    made = stub(tmp_path, lambda mel: Answer(texts[seconds_of(mel)], 0.1, -0.2), batch=4)
    rows = []
    made.engine._model.model.decoder.register_forward_hook(
        lambda *given, **_: rows.append(given[-2]["input_ids"].shape), with_kwargs=True
    )
    made.engine.recognise([noise(seconds) for seconds in (12, 3, 13, 6)])
    assert len(made.given) == 4
    steps = max(len(made.ids(text)) for text in texts.values()) + 1  # the last one says that the text ends
    first, *stepping, last = rows
    assert (first, stepping[0], last) == ((4, 1), (4, 4), (4, 4 + steps))
    assert stepping[1:] == [(4, 1)] * (steps - 1)


def seconds_of(mel):
    """Of noise that fills the beginning of 30 s."""
    return round(int((mel.mean(0) > mel.min() + 0.1).sum()) / 100)


def test_texts_are_no_longer_than_speech_can_be(tmp_path):
    made = stub(tmp_path, lambda _: Answer(" ask not what your country", 0.1, -0.1, endless=True))
    asked = [(2, most_tokens(2)), (20, MOST_TEXT_TOKENS)]
    assert [most for _, most in asked] == [72, 224]
    with torch.inference_mode():
        states = made.engine._model.model.encoder(torch.zeros(2, 80, 3000)).last_hidden_state
        texts = made.engine._texts(BaseModelOutput(states), ["en", "en"], [most for _, most in asked])
    assert [(len(text), was_cut) for text, was_cut in texts] == [(72, True), (224, True)]


def test_the_first_token_is_none_that_may_not_be_first(tmp_path):
    """A text of one end token has the likelihood that it would have if it could not end at once."""
    made = stub(tmp_path, lambda _: Answer(" No", 0.1, -0.2))
    engine = made.engine
    with torch.inference_mode():
        states = BaseModelOutput(engine._model.model.encoder(torch.zeros(1, 80, 3000)).last_hidden_state)
        ((log_probability, _),) = engine._scored(states, ["en"], [(made.ids(" No"), False)], [16_000])
    logits = engine._model.proj_out(torch.tensor([[0.0, 3.0], [0.0, 4.0]]))
    logits[:, list(engine._specials.suppressed)] = -torch.inf
    logits[0, [220, made.engine._specials.end]] = -torch.inf
    said = [*made.ids(" No"), engine._specials.end]
    assert len(said) == 2
    expected = sum(float(row.softmax(-1)[token].log()) for row, token in zip(logits, said, strict=True)) / 2
    assert log_probability == pytest.approx(expected, abs=1e-6)


@pytest.mark.usefixtures("unguarded")
def test_cut_texts_are_counted(toy):
    """Random weights never end a text."""
    (heard,) = toy.recognise([noise(1)])
    assert heard.notes["cut_texts"] == 1


def test_the_mean_log_probability_is_transformers_own(toy):
    """Theirs comes from the scores of each step, ours from one pass over the text."""
    mel = torch.rand(1, 80, 3000)
    with torch.inference_mode():
        encoded = BaseModelOutput(toy._model.model.encoder(mel).last_hidden_state)
        out = toy._model.generate(
            encoder_outputs=encoded,
            language="<|de|>",
            task="transcribe",
            return_timestamps=False,
            max_new_tokens=30,
            return_dict_in_generate=True,
            output_scores=True,
        )
        text = out["sequences"][0, 4:]
        expected = toy._model._retrieve_avg_logprobs([scores[0] for scores in out["scores"]], text, 0.0)
        ((found, _),) = toy._scored(encoded, ["de"], [(text.tolist(), True)], [16_000])
    assert len(text) == 30
    assert found == pytest.approx(float(expected), abs=1e-4)


def test_nobody_speaks_with_the_probability_that_openais_rule_reads(toy):
    """The softmax over all tokens behind <|startoftranscript|>, at the token before <|notimestamps|>."""
    mel = torch.rand(3, 80, 3000)
    start = torch.full((3, 1), toy._specials.start)
    with torch.inference_mode():
        found, languages = toy._first_look(toy._model.model.encoder(mel))
        logits = toy._model(input_features=mel, decoder_input_ids=start).logits[:, 0]
        ids = toy._model.detect_language(mel)
    assert found == pytest.approx(logits.softmax(-1)[:, toy._specials.no_timestamps - 1].tolist())
    assert [toy._specials.languages[code] for code in languages] == ids.tolist()


def test_each_piece_is_read_in_its_own_language(tmp_path):
    languages = {3: "de", 6: "zh", 12: "en"}
    made = stub(tmp_path, lambda mel: Answer(" Yes. No.", 0.1, -0.2, language=languages[seconds_of(mel)]))
    asked = []
    made.engine._model.model.decoder.register_forward_hook(
        lambda *given, **_: asked.append(given[-2]["input_ids"][:, :4].tolist()), with_kwargs=True
    )
    heard = made.engine.recognise([noise(seconds) for seconds in languages])
    assert [one.language for one in heard] == ["de", "zh", "en"]
    prompts = [list(made.engine._specials.prompt(code)) for code in languages.values()]
    assert asked[1] == asked[-1] == prompts


def test_a_language_that_is_named_is_not_recognised(tmp_path):
    made = stub(tmp_path, lambda _: replace(JFK, language="de", starts=range(0, 900, 10)))
    (heard,) = made.engine.recognise([noise(20)])
    assert (heard.language, heard.notes) == ("de", {"language_de": 1})
    (heard,) = made.engine.speaking("zh").recognise([noise(20)])
    assert heard.language == "zh"
    assert "language_zh" not in heard.notes
    with pytest.raises(ConfigError, match=r"know no language 'fr'; name one of de, en, zh"):
        made.engine.speaking("fr")


def test_it_says_what_it_is(toy, tmp_path):
    described = toy.speaking("de").describe()
    assert described["version"].startswith("transformers 5.")
    assert described | {"version": ""} == {"engine": "whisper", "version": "", "model": str(tmp_path), "language": "de"}
    assert toy.describe()["language"] is None


@pytest.mark.parametrize(
    "piece", [torch.zeros(0), torch.zeros(2, 100), torch.zeros(100, dtype=torch.float64), torch.zeros(30 * HZ + 1)]
)
def test_a_piece_that_is_none_is_refused(toy, piece):
    with pytest.raises(ValueError, match=r"piece 1 is torch\.float.* \[n\] of up to 30 s at 16000 Hz"):
        toy.recognise([torch.zeros(100), piece])


def test_it_is_quiet_and_changes_no_input(toy, caplog):
    piece = noise(2)
    before = zlib.crc32(piece.numpy().tobytes())
    with caplog.at_level(logging.WARNING):
        toy.recognise([piece])
    assert caplog.records == []
    assert zlib.crc32(piece.numpy().tobytes()) == before
    assert not toy._model.model.decoder.layers[1].encoder_attn._forward_hooks


# ---- real recordings -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("name", ["jfk.flac", "grid_bbaf2n.mpg", "librispeech_6313-76958-0021.flac"])
def test_real_recordings_pass_through_random_weights(toy, media_dir, name):
    """Untrained, so no text is right; the same twice, within the clip, in order."""
    audio = read_audio(media_dir / name)
    heard = whole(toy, torch.from_numpy(audio.samples), gate=True)
    assert len(heard.words) > 5
    assert heard == whole(toy, torch.from_numpy(audio.samples), gate=True)
    assert all(0 <= word.start_s < word.end_s <= len(audio.samples) / HZ for word in heard.words)
    assert list(heard.words) == sorted(heard.words, key=lambda word: word.start_s)
    assert heard.notes["cut_texts"] >= 1


def test_what_random_weights_say_is_no_text(media_dir):
    """Without the tokens of a vocabulary, and with the guards on."""
    audio = read_audio(media_dir / "grid_swiz3n.mpg")
    heard = whole(Whisper.load("toy", drawn(), language="en"), torch.from_numpy(audio.samples), gate=True)
    assert (heard.words, heard.notes) == ((), {"repetitive_pieces": 1})

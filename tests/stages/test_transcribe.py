import pytest
from pydantic import ValidationError

from extract.inputs.transcripts import Transcript, Word
from extract.stages.transcribe import Transcribe, TranscribeConfig
from tests.contract import ClipContract, ClipInputs

HELLO = Transcript((Word("hello", 0.5, 1.0), Word("😀", 0.75, 0.75)), {"spread_words": 1})


class TestTranscribe(ClipContract):
    def stage(self):
        return Transcribe(TranscribeConfig())

    def clips(self):
        given = [HELLO, None, Transcript(()), Transcript((Word("a", 0, 1),))]
        return [ClipInputs({"transcript": transcript}) for transcript in given]


def compute(transcript):
    return Transcribe(TranscribeConfig()).compute({"transcript": transcript})


def test_words_are_as_given():
    result = compute(HELLO)
    assert result.arrays["text"] == ["hello", "😀"]
    assert result.arrays["start_s"].tolist() == [0.5, 0.75]
    assert result.arrays["end_s"].tolist() == [1.0, 0.75]
    assert result.notes == {"engine": "given", "spread_words": 1}


def test_no_transcript_is_another_thing_than_no_words():
    assert compute(None).empty == "no_transcript"
    assert compute(Transcript(())).empty == "no_words"


@pytest.mark.parametrize("engines", [["whisper"], []])
def test_engines_of_later_versions_are_refused(engines):
    with pytest.raises(ValidationError, match="engines"):
        TranscribeConfig(engines=engines)

"""Whisper's network, special tokens and files: sizes, strictness, what is refused."""

import json
import zlib

import numpy as np
import pytest
import safetensors.torch
import torch
from transformers import WhisperForConditionalGeneration

from extract.errors import ConfigError, WeightsError
from extract.models import whisper
from extract.recognition.whisper import Whisper
from tests.toy_whisper import NUM_TEXTS, bpe, drawn, generation, noise, write_folder

PARAMETERS = {
    "tiny": 39,
    "tiny.en": 39,
    "base": 74,
    "base.en": 74,
    "small": 244,
    "small.en": 244,
    "medium": 769,
    "medium.en": 769,
    "large-v3": 1550,
    "large-v3-turbo": 809,
}
"""Millions, as OpenAI's model cards have them."""


@pytest.mark.parametrize(("architecture", "millions"), PARAMETERS.items())
def test_sizes_are_the_published_ones(architecture, millions):
    model = whisper.build(architecture)
    counted = sum(tensor.numel() for name, tensor in model.state_dict().items() if name != "proj_out.weight")
    # The cards round, and leave the encoder's fixed sinusoids out in some.
    assert counted / 1e6 == pytest.approx(millions, rel=0.035)


def test_the_network_is_transformers_own(tmp_path):
    """Read by transformers from the same folder: the same logits."""
    weights = write_folder(tmp_path)
    theirs = WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    ours, _ = whisper.load("toy", weights)
    mel, ids = torch.rand(2, 80, 3000), torch.tensor([[401, 402, 403], [401, 5, 9]])
    with torch.inference_mode():
        expected = theirs(input_features=mel, decoder_input_ids=ids).logits
        found = ours(input_features=mel, decoder_input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert ours.proj_out.weight is ours.model.decoder.embed_tokens.weight


def test_the_token_table_may_stand_in_the_file_twice(tmp_path):
    weights = write_folder(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    once, _ = whisper.load("toy", weights)
    tensors["proj_out.weight"] = tensors["model.decoder.embed_tokens.weight"].clone()
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    twice, _ = whisper.load("toy", weights)
    assert once.state_dict().keys() == twice.state_dict().keys()


def test_precision_is_that_asked_for():
    model, _ = whisper.load("toy", drawn(), "cpu", torch.float16)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float16}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_training_mode_would_change_nothing():
    model, _ = whisper.load("toy", drawn())
    mel, ids = torch.rand(1, 80, 3000), torch.tensor([[257, 5]])
    with torch.inference_mode():
        expected = model(input_features=mel, decoder_input_ids=ids).logits
        assert torch.equal(model.train()(input_features=mel, decoder_input_ids=ids).logits, expected)


def test_special_tokens_are_those_of_the_file(tmp_path):
    """A prompt as OpenAI's: <|startoftranscript|><|de|><|transcribe|><|notimestamps|>."""
    specials = whisper.read_specials("toy", write_folder(tmp_path))
    assert specials.prompt("de") == (351, 353, 356, 360)
    assert specials.no_speech == 359
    assert specials.alignment_heads == ((1, 0), (1, 3))
    assert specials.languages == {"en": 352, "de": 353, "zh": 354}
    assert specials.suppressed == (7, *range(351, 1768))  # a text holds no special token and no time


def test_english_only_models_have_a_shorter_prompt(tmp_path):
    weights = write_folder(tmp_path)
    english = generation(NUM_TEXTS) | {"is_multilingual": False}
    del english["lang_to_id"], english["task_to_id"]
    (tmp_path / "generation_config.json").write_text(json.dumps(english))
    engine = Whisper.load("toy", weights)
    assert engine._specials.prompt("en") == (351, 360)
    asked = []
    engine._model.model.decoder.register_forward_hook(
        lambda *given, **_: asked.append(given[-2]["input_ids"][:, :2].tolist()), with_kwargs=True
    )
    (heard,) = engine.recognise([noise(1)])
    assert (heard.language, engine.describe()["language"]) == ("en", "en")
    assert asked[1] == asked[-1] == [[351, 360]]
    assert not any(name.startswith("language_") for name in heard.notes)
    with pytest.raises(ConfigError, match=r"know no language 'de'; name one of en, or none"):
        engine.speaking("de")


@pytest.mark.parametrize("in_tokenizer_file", [False, True])
@pytest.mark.parametrize("text", [" Thank you.", " And so my fellow Americans", " naïve 你好 😀"])
def test_ids_are_spelled_as_tokenizers_spells_them(tmp_path, in_tokenizer_file, text):
    weights = write_folder(tmp_path, in_tokenizer_file=in_tokenizer_file)
    ids = bpe().encode(text).ids
    assert whisper.load_tokenizer(weights, whisper.read_specials("toy", weights)).decode(ids) == text


def test_random_weights_spell_bytes_in_the_order_of_official_vocabularies():
    tokenizer = whisper.load_tokenizer(drawn(), whisper.TOY_SPECIALS)
    assert tokenizer.decode([220, 39, 72, 0]) == " Hi!"  # as of GPT-2, whose first tokens these are


def changed(name, **fields):
    def change(folder):
        path = folder / name
        found = json.loads(path.read_text())
        found |= fields
        path.write_text(json.dumps({key: value for key, value in found.items() if value is not ...}))

    return change


def without(name):
    return lambda folder: (folder / name).unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            changed("config.json", decoder_layers=3),
            r"config.json is not of architecture toy: decoder_layers 3",
        ),
        (changed("config.json", tie_word_embeddings=False), r"tie_word_embeddings False, expected True"),
        (without("generation_config.json"), r"there is no generation_config.json, .*copy that of the model"),
        (changed("generation_config.json", alignment_heads=...), r"has no field 'alignment_heads'; copy the file"),
        (changed("generation_config.json", alignment_heads=[]), r"names the alignment heads none"),
        (
            changed("generation_config.json", alignment_heads=[[2, 0]]),
            r"heads \[\(2, 0\)\], .* 2 layers with 4 heads",
        ),
        (changed("generation_config.json", alignment_heads=[[1, 4]]), r"heads \[\(1, 4\)\]"),
        (changed("generation_config.json", alignment_heads=[1]), r"generation_config.json is malformed: .*int"),
        (changed("generation_config.json", lang_to_id=[]), r"generation_config.json is malformed"),
        (changed("generation_config.json", lang_to_id={}), r"generation_config.json names no language in lang_to_id"),
        (changed("generation_config.json", eos_token_id="350"), r"malformed: found '350', expected a whole number"),
        (changed("generation_config.json", no_timestamps_token_id=1768), r"tokens \[1768\], .*toy has 0 to 1767"),
        (changed("generation_config.json", eos_token_id=349), r"350 text tokens in the vocabulary, expected 0 to 348"),
        (changed("generation_config.json", eos_token_id=352), r"350 text tokens in the vocabulary, expected 0 to 351"),
        (changed("preprocessor_config.json", feature_size=128), r"not of architecture toy: feature_size 128, exp.* 80"),
        (without("vocab.json"), r"expected a folder with vocab.json or tokenizer.json"),
        (changed("vocab.json", a="x"), r"vocabulary is malformed at 'a': found 'x', expected an id"),
    ],
)
def test_files_of_another_model_are_refused(tmp_path, change, message):
    weights = write_folder(tmp_path)
    change(tmp_path)
    with pytest.raises(WeightsError, match=message):
        Whisper.load("toy", weights)


@pytest.mark.parametrize("content", ["[1]", "{", '{"model": []}', '{"model": {"vocab": [["a", 1]]}}'])
def test_a_tokenizer_file_that_is_none_is_refused(tmp_path, content):
    weights = write_folder(tmp_path)
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(WeightsError, match=r"cannot read|expected"):
        Whisper.load("toy", weights)


def test_tensors_of_another_size_are_refused(tmp_path):
    weights = write_folder(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / "model.safetensors")
    del tensors["model.encoder.conv1.bias"]
    tensors["more"] = torch.zeros(1)
    tensors["model.decoder.embed_tokens.weight"] = torch.zeros(1767, 32)
    safetensors.torch.save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing \(model.encoder.conv1.bias\); 1 unexpected \(more\); 2 of"):
        Whisper.load("toy", weights)


def test_what_cannot_be_built_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"architecture is 'huge', expected one of tiny, base, small"):
        whisper.random_weights("huge")
    with pytest.raises(ConfigError, match=r"architecture is 'huge'"):
        Whisper.load("huge", write_folder(tmp_path))
    with pytest.raises(WeightsError, match=r"architecture tiny has no tokens without its files; set architecture: toy"):
        whisper.read_specials("tiny", drawn())


def test_random_weights_are_the_same_everywhere():
    found = whisper.random_weights("toy")
    assert "proj_out.weight" not in found
    first = found["model.decoder.embed_tokens.weight"].ravel()[:3]
    seed = zlib.crc32(b"whisper/toy:model.decoder.embed_tokens.weight")
    expected = np.random.Generator(np.random.PCG64(seed)).standard_normal(3) / 32**0.5
    assert first == pytest.approx(expected.astype(np.float32))

"""A Whisper whose answers a test decides, through the real path: mel energies, generate, cross-attention, tokens.

Its files are of the official format. The encoder says which answer the sound gets, the decoder which token of it comes
next, and the cross-attention where in the sound that token lies; all else is transformers' own.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from extract.models import whisper
from extract.recognition.pieces import cut
from extract.recognition.whisper import Whisper
from extract.recognition.words import Heard, merge
from extract.weights.files import Weights

CORPUS = [
    " And so my fellow Americans, ask not what your country can do for you, ask what you can do for your country.",
    " Thank you. Thanks for watching! You you. Please subscribe to my channel. Yes. No.",
    " I'm going to go to the next one. Bin blue at F two now. Lay white in S three soon.",
]
HZ = whisper.SAMPLE_HZ
NUM_TEXTS = 350
"""Text tokens of the vocabulary that is made of the corpus."""


def babbler(folder: Path, **settings: Any) -> Whisper:
    """An engine on random numbers that says one word after another.

    A random network repeats itself, in halves of letters. This one has a last layer of its own, heeds the position
    more, and may only choose what begins a word.
    """
    weights = write_folder(folder)
    model, specials = whisper.load("toy", weights)
    features, tokenizer = whisper.load_features("toy", weights), whisper.load_tokenizer(weights, specials)
    model.proj_out.weight = nn.Parameter(torch.randn(1768, 32, generator=torch.Generator().manual_seed(0)))
    model.model.decoder.embed_positions.weight.mul_(4)
    others = [number for symbol, number in bpe().get_vocab().items() if not (symbol[0] == "\u0120" and len(symbol) > 2)]
    specials = replace(specials, suppressed=tuple(sorted({*others, *specials.suppressed})))
    model.generation_config = whisper.greedy(specials)
    return Whisper(model, specials, features, tokenizer, str(folder), **settings)


def noise(seconds: float, seed: int = 0, level: float = 0.1) -> Tensor:
    """Float32 [n] at 16 kHz."""
    return level * torch.randn(round(seconds * HZ), generator=torch.Generator().manual_seed(seed))


@functools.cache
def music(seconds: int) -> Tensor:
    """Plucked notes over a drum, float32 [n] at 16 kHz."""
    random = np.random.default_rng(0)
    after = np.arange(2 * HZ) / HZ
    sound = np.zeros((seconds + 2) * HZ)
    for beat in range(0, seconds * HZ, HZ // 2):
        pitch = 220 * 2 ** (random.choice([0, 2, 4, 5, 7, 9, 11]) / 12)
        note = np.exp(-3 * after) * sum(np.sin(2 * np.pi * pitch * k * after) / k for k in range(1, 5))
        sound[beat : beat + len(after)] += note + np.exp(-30 * after) * random.normal(size=len(after))
    return torch.from_numpy((0.08 * sound[: seconds * HZ]).astype(np.float32))


def whole(engine: Whisper, sound: Tensor, *, gate: bool) -> Heard:
    """As the stage does it: cut, recognise, put together."""
    pieces = cut(sound, HZ, engine.max_piece_s, gate=gate)
    return merge(pieces, engine.recognise([sound[piece.start : piece.stop] for piece in pieces]), HZ, 0.0)


def drawn(architecture: str = "toy") -> Weights:
    """Random weights, as a config that says ``random`` gets them."""
    return Weights("random", "0" * 64, "", "", untrained=True, drawn=whisper.random_weights(architecture))


def bpe() -> Tokenizer:
    """A byte-level BPE that learnt a few words, without special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=NUM_TEXTS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def generation(num_texts: int) -> dict[str, Any]:
    """``generation_config.json`` of a multilingual model with so many text tokens, ids in the official order."""
    names = ["<|en|>", "<|de|>", "<|zh|>"]
    first = num_texts + 2  # behind <|endoftext|> and <|startoftranscript|>
    after = first + len(names)  # translate, transcribe, startoflm, startofprev, nospeech, notimestamps
    return {
        "eos_token_id": num_texts,
        "pad_token_id": num_texts,
        "decoder_start_token_id": num_texts + 1,
        "lang_to_id": {name: first + number for number, name in enumerate(names)},
        "task_to_id": {"translate": after, "transcribe": after + 1},
        "no_timestamps_token_id": after + 5,
        "is_multilingual": True,
        "suppress_tokens": [7, num_texts + 1, *range(after, after + 5)],
        "begin_suppress_tokens": [220, num_texts],
        "alignment_heads": [[1, 0], [1, 3]],
        "max_length": 448,
        "forced_decoder_ids": [[1, None], [2, after + 1]],
    }


def write_folder(folder: Path, *, in_tokenizer_file: bool = False) -> Weights:
    """A toy in the files of an official repository."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = bpe()
    vocabulary = tokenizer.get_vocab()
    end = len(vocabulary)
    if in_tokenizer_file:
        tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
        tokenizer.save(str(folder / "tokenizer.json"))
    else:
        tokenizer.model.save(str(folder))  # vocab.json, merges.txt
        (folder / "vocab.json").write_text(json.dumps(vocabulary | {"<|endoftext|>": end}))
        (folder / "added_tokens.json").write_text(json.dumps({"<|startoftranscript|>": end + 1}))
    (folder / "config.json").write_text(whisper.model_config("toy").to_json_string(use_diff=False))
    (folder / "generation_config.json").write_text(json.dumps(generation(end)))
    sound = {"feature_size": 80, "sampling_rate": 16_000, "hop_length": 160, "chunk_length": 30, "n_fft": 400}
    (folder / "preprocessor_config.json").write_text(json.dumps(sound))
    tensors = {name: torch.from_numpy(values) for name, values in whisper.random_weights("toy").items()}
    save_file(tensors, folder / "model.safetensors")
    return Weights(str(folder), "0" * 64, "", "", path=folder)


@dataclass(frozen=True)
class Answer:
    """What the stub says of a sound."""

    text: str
    no_speech: float
    """Probability of the token that says that nobody speaks."""
    log_probability: float
    """Of each token of the text, and of its end."""
    starts: Sequence[int] | None = None
    """Encoder position where each token begins, then where the last one ends; None: even shares of 30 s."""
    language: str = "en"
    endless: bool = False
    """The text is said over and over and never ended."""


JFK = Answer(" And so my fellow Americans, ask not what your country can do for you", 0.02, -0.28)
"""Speech, with the figures of whisper-tiny.en."""
SILENCE_INVENTIONS = {
    "zeros": Answer(" you", 0.948, -0.378),
    "hum": Answer(" .", 0.953, -0.036, endless=True),
    "hiss": Answer(" You", 0.833, -1.544),
    "thanks": Answer(" Thanks for watching!", 0.71, -0.9),
}
"""Over silence; all but the last with the figures of whisper-tiny.en."""
MUSIC_INVENTIONS = {
    "notes": Answer(" Thank you.", 0.754, -0.638),
    "chord": Answer(" I'm going to go to the next one.", 0.556, -1.761),
    "drums": Answer(" I'm going to go to the next one.", 0.89, -1.744),
    "loop": Answer(" Thank you.", 0.31, -0.05, endless=True),
    "phrase loop": Answer(" Please subscribe to my channel.", 0.22, -0.11, endless=True),
}
"""Over music, likewise; the loops are what larger models do, with little doubt."""


@dataclass
class Stub:
    """An engine, and what it was asked."""

    engine: Whisper
    tokenizer: Tokenizer
    answers: Callable[[Tensor], Answer]
    """Of the mel energies [80, 3000] of a piece."""
    given: list[Answer] = field(default_factory=list)
    """The answer to each piece, as the encoder met them."""

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text).ids
        return ids


def stub(folder: Path, answers: Callable[[Tensor], Answer], **settings: Any) -> Stub:
    """An engine from official files whose network answers as told."""
    engine = Whisper.load("toy", write_folder(folder), **settings)
    made = Stub(engine, bpe(), answers)
    network = engine._model.model
    decode, specials = network.decoder.forward, engine._specials

    def encode(mel: Tensor) -> Any:
        made.given.extend(answers(one) for one in mel)
        first = len(made.given) - len(mel)
        states = torch.zeros(len(mel), whisper.POSITIONS, 32)
        states[:, :, 0] = torch.arange(first, first + len(mel))[:, None]  # which answer
        return _Encoded(states)

    def decode_as_told(**given: Any) -> Any:
        past = given.get("past_key_values")
        before = past.get_seq_length() if past is not None else 0
        result = decode(**given)
        num = given["input_ids"].shape[1]
        states = torch.zeros_like(result.last_hidden_state)
        states[..., 0] = given["encoder_hidden_states"][:, :1, 0]
        states[..., 1] = torch.arange(before, before + num)  # which token
        result.last_hidden_state = states
        return result

    network.encoder.forward = encode
    network.decoder.forward = decode_as_told
    for layer, _ in specials.alignment_heads:
        network.decoder.layers[layer].encoder_attn = _Attention(made)
    engine._model.proj_out = _Logits(made)
    return made


@dataclass
class _Encoded:
    last_hidden_state: Tensor


class _Logits(nn.Module):
    def __init__(self, made: Stub) -> None:
        super().__init__()
        self.made = made

    def forward(self, states: Tensor) -> Tensor:
        flat = states.reshape(-1, states.shape[-1])
        logits = torch.stack([self.one(self.made.given[int(row[0])], int(row[1])) for row in flat])
        return logits.reshape(*states.shape[:-1], -1)

    def one(self, answer: Answer, position: int) -> Tensor:
        """Logarithms of probabilities, of which the text's tokens have what the answer says."""
        specials = self.made.engine._specials
        num_ids = whisper.ARCHITECTURES["toy"].num_ids
        if position == 0:
            chances = {
                specials.no_speech: answer.no_speech,
                specials.languages[answer.language]: 0.9 - 0.9 * answer.no_speech,
            }
        else:
            number = position + 1 - len(specials.prompt(answer.language))
            text = self.made.ids(answer.text)
            if answer.endless:
                text *= 1 + whisper.MAX_TOKENS // len(text)
            token = text[number] if 0 <= number < len(text) else specials.end
            chances = {token: float(torch.tensor(answer.log_probability).exp())}
        # Shared among all texts, so that none is likelier than the token.
        logits = torch.full((num_ids,), 1e-12).log()
        logits[: specials.end] = torch.tensor((1 - sum(chances.values())) / specials.end).log()
        for token, chance in chances.items():
            logits[token] = torch.tensor(chance).log()
        return logits


class _Attention(nn.Module):
    """Every head attends to where the answer says that the next token lies; prompts attend everywhere."""

    def __init__(self, made: Stub) -> None:
        super().__init__()
        self.made = made

    def forward(self, hidden_states: Tensor, key_value_states: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
        num_rows = hidden_states.shape[1]
        weights = torch.full((len(hidden_states), 4, num_rows, whisper.POSITIONS), 1 / whisper.POSITIONS)
        for row, states in zip(weights, key_value_states, strict=True):
            answer = self.made.given[int(states[0, 0])]
            num_tokens = len(self.made.ids(answer.text))
            prompt = len(self.made.engine._specials.prompt(answer.language))
            starts = answer.starts or [
                whisper.POSITIONS * number // (num_tokens + 1) for number in range(num_tokens + 1)
            ]
            for number, (first, last) in enumerate(zip(starts, [*starts[1:], whisper.POSITIONS], strict=True)):
                if prompt - 1 + number < num_rows:
                    row[:, prompt - 1 + number] = 0
                    row[:, prompt - 1 + number, first:last] = 1 / (last - first)
        return torch.zeros_like(hidden_states), weights

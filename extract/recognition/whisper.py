"""Whisper as an engine: pieces of speech in, words with their times out, and none where nobody speaks."""

import contextlib
import copy
import itertools
import logging
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from extract.errors import ConfigError
from extract.inputs.transcripts import Word
from extract.models import whisper
from extract.recognition.alignment import POSITIONS_PER_S, token_times
from extract.recognition.speech_activity import HOPS_PER_S, levels_db
from extract.recognition.words import NO_SPEECH_PROBABILITY, Heard, is_no_speech, is_repetitive
from extract.weights.files import Weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MOST_TEXT_TOKENS = 224
"""Of one piece: half of the decoder's positions, as in Whisper's program."""
TOKENS_AT_ONCE, TOKENS_PER_S = 32, 20
"""A shorter piece may have this many tokens, plus so many per second: fluent speech has 4 a second in English, and 20
where the vocabulary spells a script byte by byte. A text that is longer is a loop."""
FEW_TOKENS, UNLIKELY = 8, -1.5
"""See ``is_invented``."""
LONGEST_WORD_S = 5.0
"""A word of more seconds, pauses not counted, is not spoken: a phrase was made up over music."""
SHORTEST_PAUSE_S = 0.3
"""Stops such as the p of "happy" take 0.1 s and belong to their word."""
FAR_BELOW_DB, NEAR_QUIET_DB = 25.0, 6.0
"""The sounds of speech differ by 25 dB or so; steady noise, smoothed over 50 ms, stays within 6 dB of its quietest."""


class Whisper:
    """An ``Engine``: greedy, so the same twice."""

    name = "whisper"
    max_piece_s = float(whisper.WINDOW_S)

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - transformers' WhisperForConditionalGeneration
        specials: whisper.Specials,
        features: Any,  # noqa: ANN401 - transformers' WhisperFeatureExtractor
        tokenizer: Any,  # noqa: ANN401 - transformers' WhisperTokenizer
        spec: str,
        *,
        language: str | None = None,
        batch: int = 16,
    ) -> None:
        """``load`` makes the first five; ``language`` and ``batch`` are as there."""
        _check_language(language, specials, spec)
        self._model, self._specials, self._features, self._tokenizer = model, specials, features, tokenizer
        self._spec, self._language, self._batch = spec, language, batch
        self._device, self._precision = model.device, model.dtype
        _give_weights(model, specials)

    @classmethod
    def load(
        cls,
        architecture: str,
        weights: Weights,
        device: "torch.device | str" = "cpu",
        precision: "torch.dtype | None" = None,
        *,
        language: str | None = None,
        batch: int = 16,
    ) -> "Whisper":
        """The engine with its weights on ``device`` in ``precision`` (float32 when absent).

        Args:
            architecture: a key of ``models.whisper.ARCHITECTURES``.
            language: code of the language spoken (``en``); None: recognised, for each piece by itself.
            batch: pieces at a time; changes speed only.

        Raises:
            WeightsError: the weights are not of this architecture, or files are missing beside them.
            ConfigError: there is no such architecture, or the model does not know the language.
        """
        model, specials = whisper.load(architecture, weights, device, precision)
        features, tokenizer = whisper.load_features(architecture, weights), whisper.load_tokenizer(weights, specials)
        return cls(model, specials, features, tokenizer, weights.spec, language=language, batch=batch)

    def speaking(self, language: str | None) -> "Whisper":
        """The same engine on the same network, for another language; ConfigError where the model does not know it."""
        model, features, tokenizer = self._model, self._features, self._tokenizer
        return Whisper(model, self._specials, features, tokenizer, self._spec, language=language, batch=self._batch)

    def describe(self) -> dict[str, Any]:
        """``engine``, ``version`` (of transformers), ``model``, ``language``."""
        import transformers

        return {
            "engine": self.name,
            "version": f"transformers {transformers.__version__}",
            "model": self._spec,
            "language": self._fixed_language,
        }

    @property
    def _fixed_language(self) -> str | None:
        return "en" if self._specials.transcribe is None else self._language

    def recognise(self, pieces: "Sequence[Tensor]") -> list[Heard]:
        """What is said in each piece; see ``Engine.recognise``.

        Notes: ``no_speech_pieces`` (``is_invented``) and ``repetitive_pieces`` have no words. (Whisper's own program
        samples at higher temperatures what repeats itself or is unlikely, which gives other words each time.)
        ``cut_texts`` were longer than speech can be; ``words_without_time`` and ``words_too_long`` are left out;
        ``language_<code>`` counts the pieces where languages are recognised.
        """
        import torch

        for number, piece in enumerate(pieces):
            if piece.ndim != 1 or piece.dtype != torch.float32 or not 0 < len(piece) <= self._most_samples:
                raise ValueError(
                    f"piece {number} is {piece.dtype} {list(piece.shape)}, expected float32 [n] of up to "
                    f"{self.max_piece_s:g} s at {whisper.SAMPLE_HZ} Hz"
                )
        # Texts of like length end together.
        order = sorted(range(len(pieces)), key=lambda number: len(pieces[number]))
        found: dict[int, Heard] = {}
        with torch.inference_mode():
            for at in range(0, len(order), self._batch):
                batch = order[at : at + self._batch]
                found.update(zip(batch, self._batch_of([pieces[number] for number in batch]), strict=True))
        return [found[number] for number in range(len(pieces))]

    @property
    def _most_samples(self) -> int:
        return whisper.WINDOW_S * whisper.SAMPLE_HZ

    def _batch_of(self, pieces: "Sequence[Tensor]") -> Iterator[Heard]:
        """One pass of the encoder, one look at the language, the steps of the longest text, and one pass over texts."""
        from transformers.modeling_outputs import BaseModelOutput

        mel = self._features(
            [piece.numpy() for piece in pieces],
            sampling_rate=whisper.SAMPLE_HZ,
            return_tensors="pt",
            device=str(self._device),
        ).input_features  # [B, mels, 3000]
        encoded = BaseModelOutput(
            last_hidden_state=self._model.model.encoder(mel.to(self._device, self._precision)).last_hidden_state
        )  # [B, 1500, D]
        no_speech, languages = self._first_look(encoded)
        texts = self._texts(encoded, languages, [most_tokens(len(piece) / whisper.SAMPLE_HZ) for piece in pieces])
        scored = self._scored(encoded, languages, texts, [len(piece) for piece in pieces])
        for piece, silent, language, (text, was_cut), (log_probability, times) in zip(
            pieces, no_speech, languages, texts, scored, strict=True
        ):
            notes = {f"language_{language}": 1} if self._fixed_language is None else {}
            if is_invented(silent, log_probability, len(text)):
                yield Heard((), language, {**notes, "no_speech_pieces": 1})
                continue
            # Of the text as it is: a loop hardly takes time, and most of its words would be gone below.
            if is_repetitive(self._tokenizer.decode(text).split()):
                yield Heard((), language, {**notes, "repetitive_pieces": 1})
                continue
            timed = self._words(text, times, language)
            words, dropped = with_time(timed)
            kept, too_long = without_pauses(words, piece)
            notes |= {"cut_texts": int(was_cut), "words_without_time": dropped, "words_too_long": too_long}
            yield Heard(kept, language, {name: count for name, count in notes.items() if count})

    def _first_look(self, encoded: Any) -> tuple[list[float], list[str]]:  # noqa: ANN401 - BaseModelOutput
        """For each piece, the probability that nobody speaks, and the language: what follows the start token alone."""
        import torch

        num = len(encoded.last_hidden_state)
        start = torch.full((num, 1), self._specials.start, device=self._device)
        logits = self._model(encoder_outputs=encoded, decoder_input_ids=start, use_cache=False).logits[:, 0].float()
        no_speech: list[float] = logits.softmax(-1)[:, self._specials.no_speech].tolist()
        if self._fixed_language is not None:
            return no_speech, [self._fixed_language] * num
        codes = list(self._specials.languages)
        ids = torch.tensor([self._specials.languages[code] for code in codes], device=self._device)
        return no_speech, [codes[best] for best in logits[:, ids].argmax(-1).tolist()]

    def _texts(
        self,
        encoded: Any,  # noqa: ANN401 - BaseModelOutput
        languages: Sequence[str],
        most: Sequence[int],
    ) -> list[tuple[list[int], bool]]:
        """Token ids of each piece's text, at most ``most``, and whether it had more."""
        spoken: dict[str, Any] = {}
        if self._specials.transcribe is not None:
            spoken = {"language": [f"<|{code}|>" for code in languages], "task": "transcribe"}
        with _quiet():
            found = self._model.generate(
                encoder_outputs=encoded, return_timestamps=False, max_new_tokens=max(most), **spoken
            )  # [B, N], without the prompt
        texts = []
        for row, limit in zip(found.tolist(), most, strict=True):
            whole = row.index(self._specials.end) if self._specials.end in row else len(row)
            # A text as long as the limit was not ended by the model.
            texts.append((row[: min(whole, limit)], whole >= limit))
        return texts

    def _scored(
        self,
        encoded: Any,  # noqa: ANN401 - BaseModelOutput
        languages: Sequence[str],
        texts: Sequence[tuple[list[int], bool]],
        num_samples: Sequence[int],
    ) -> Iterator[tuple[float, NDArray[np.float64]]]:
        """For each piece, the mean log-probability of its tokens and their times.

        All tokens of all texts go through the decoder once more, at once: the text is known, and the weights that are
        needed are those of few heads. (Kept at every step, those of all heads would fill the device's memory.)
        """
        import torch

        prompts = [self._specials.prompt(language) for language in languages]
        rows = [[*prompt, *text, self._specials.end] for prompt, (text, _) in zip(prompts, texts, strict=True)]
        longest = max(map(len, rows))
        given = [row + [self._specials.end] * (longest - len(row)) for row in rows]  # causal: what follows is not seen
        with _watching(self._model, self._specials) as seen:
            states = self._model.model(
                encoder_outputs=encoded, decoder_input_ids=torch.tensor(given, device=self._device), use_cache=False
            ).last_hidden_state  # [B, longest, D]
        for number, (prompt, row, (text, was_cut)) in enumerate(zip(prompts, rows, texts, strict=True)):
            logits = self._model.proj_out(states[number, len(prompt) - 1 : len(row) - 1]).float()  # [N + 1, ids]
            said = row[len(prompt) :][: len(text) + (not was_cut)]
            log_probability = self._log_probability(logits, said)
            frames = max(1, num_samples[number] * POSITIONS_PER_S // whisper.SAMPLE_HZ)
            attention = torch.stack([
                seen[layer][number, head, : len(row), :frames] for layer, head in self._specials.alignment_heads
            ])  # [H, P + N + 1, F]
            yield log_probability, token_times(attention, len(prompt))

    def _log_probability(self, logits: "Tensor", said: Sequence[int]) -> float:
        """Mean over the tokens chosen, among all that may be; the end token counts where the model chose it."""
        import torch

        logits[:, list(self._specials.suppressed)] = -math.inf
        logits[0, list(self._specials.suppressed_first)] = -math.inf
        each = logits[: len(said)].log_softmax(-1)
        return float(each.gather(-1, torch.tensor(said, device=each.device)[:, None]).mean())

    def _words(self, text: Sequence[int], times: NDArray[np.float64], language: str) -> list[Word]:
        """Words with the times of their tokens. What is punctuation alone is none."""
        from transformers.models.whisper.tokenization_whisper import LANGUAGES, _combine_tokens_into_words

        spelled, _, indices = _combine_tokens_into_words(self._tokenizer, list(text), LANGUAGES.get(language, language))
        return [
            Word(" ".join(word.split()), float(times[tokens[0]]), float(times[tokens[-1] + 1]))
            for word, tokens in zip(spelled, indices, strict=True)
            if any(unicodedata.category(letter)[0] in "LMN" for letter in word)
        ]


def is_invented(no_speech: float, mean_log_probability: float, num_tokens: int) -> bool:
    """Whether the text of a piece was made up, by the model's own account. Beside the published rule:

    * The mean over few tokens is no evidence. Over 30 s of zeros whisper-tiny.en says "you" with .95 and -0.38, over
      plucked notes "Thank you." with .75 and -0.64; of single words that are spoken nine in ten have less than .6.
    * What is least likely is made up at a lower probability of silence, too: over a chord it says "I'm going to go to
      the next one." with .56 and -1.76.
    """
    if is_no_speech(no_speech, mean_log_probability):
        return True
    if no_speech > NO_SPEECH_PROBABILITY and num_tokens < FEW_TOKENS:
        return True
    return no_speech > NO_SPEECH_PROBABILITY / 2 and mean_log_probability < UNLIKELY


def with_time(words: Sequence[Word]) -> tuple[list[Word], int]:
    """Words that take time, and how many were left out that take none.

    A single short word ("the") may be lost between its neighbours, and gets the shortest time there is. Two and more in
    a row are no speech: the end of a made-up text has no sound of its own.
    """
    kept: list[Word] = []
    for takes_time, run in itertools.groupby(words, key=lambda word: word.end_s > word.start_s):
        alike = list(run)
        if takes_time:
            kept += alike
        elif len(alike) == 1 and alike[0].start_s >= 1 / POSITIONS_PER_S:
            # Rounded, so that it does not begin before a word that begins at the same time.
            kept.append(Word(alike[0].text, round(alike[0].start_s - 1 / POSITIONS_PER_S, 6), alike[0].end_s))
    return kept, len(words) - len(kept)


def most_tokens(length_s: float) -> int:
    """Tokens that the text of a piece may have."""
    return min(MOST_TEXT_TOKENS, TOKENS_AT_ONCE + math.ceil(TOKENS_PER_S * length_s))


def without_pauses(words: Sequence[Word], piece: "Tensor") -> tuple[tuple[Word, ...], int]:
    """Words without the pauses around them, and how many were longer than ``LONGEST_WORD_S`` and are left out.

    Attention says where the next word begins, so the pause between two words goes to one of them, and the first word
    takes the silence before it. A word keeps the stretch of its time that holds most sound. One that holds none stays
    as it is: it may be quiet speech.

    Args:
        words: seconds from the piece's start.
        piece: [n], 16 kHz.
    """
    loud = np.flatnonzero(_louder_than_pauses(levels_db(piece, whisper.SAMPLE_HZ)))  # frames of 10 ms
    kept = []
    for word in words:
        first, last = (round(time * HOPS_PER_S) for time in (word.start_s, word.end_s))
        inside = loud[np.searchsorted(loud, first) : np.searchsorted(loud, last)]
        if len(inside):
            stretches = np.split(inside, np.flatnonzero(np.diff(inside) > SHORTEST_PAUSE_S * HOPS_PER_S) + 1)
            most = max(stretches, key=len)
            start_s, end_s = most[0] / HOPS_PER_S, (most[-1] + 1) / HOPS_PER_S
            word = Word(word.text, max(word.start_s, float(start_s)), min(word.end_s, float(end_s)))
        if word.end_s - word.start_s <= LONGEST_WORD_S:
            kept.append(word)
    return tuple(kept), len(words) - len(kept)


def _louder_than_pauses(levels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which frames of a piece are no pause, [F]: pauses are near its quietest frames and far below its loudest.

    Where loud and quiet are alike, as over music, only what lies well below all else is a pause.
    """
    quiet, loud = np.percentile(levels, (5, 95))
    threshold = max(loud - FAR_BELOW_DB, min(quiet + NEAR_QUIET_DB, loud - FAR_BELOW_DB / 2))
    found: NDArray[np.bool_] = levels > threshold
    return found


def _check_language(language: str | None, specials: whisper.Specials, spec: str) -> None:
    known = specials.languages if specials.transcribe is not None else {"en": 0}
    if language is not None and language not in known:
        raise ConfigError(
            f"weights {spec!r} know no language {language!r}; name one of {', '.join(sorted(known))}, or none: it is "
            "recognised"
        )


def _give_weights(
    model: Any,  # noqa: ANN401 - transformers' model
    specials: whisper.Specials,
) -> None:
    """Let the cross-attentions that ``_watching`` needs compute their weights; fused ones never have them."""
    plain = copy.copy(model.config)
    plain._attn_implementation = "eager"
    for layer in {layer for layer, _ in specials.alignment_heads}:
        model.model.decoder.layers[layer].encoder_attn.config = plain


@contextlib.contextmanager
def _watching(
    model: Any,  # noqa: ANN401 - transformers' model
    specials: whisper.Specials,
) -> "Iterator[Mapping[int, Tensor]]":
    """Layer -> weights of its cross-attention [B, heads, N, 1500], of the forward pass made in this context."""
    seen: dict[int, Tensor] = {}

    def keeper(layer: int) -> Any:  # noqa: ANN401 - a hook
        return lambda _module, _given, result: seen.__setitem__(layer, result[1])

    hooks = [
        model.model.decoder.layers[layer].encoder_attn.register_forward_hook(keeper(layer))
        for layer in {layer for layer, _ in specials.alignment_heads}
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """transformers warns of arguments that its own functions give each other."""
    logger = logging.getLogger("transformers.generation")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""RoBERTa features of the words around each frame: one vector per token, or their mean."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from extract.models import roberta
from extract.stage import ClipResult, ClipStage, Context, Output, StageConfig
from extract.timeline import FRAMES, Table, utterances, words_met

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Encoding
    from torch import Tensor

TOKENS = Table("token")
TEXTS = Table("text")
PIECE_TOKENS = roberta.MAX_TOKENS - 2
"""Tokens that fit between ``<s>`` and ``</s>``."""
TOKENS_AT_ONCE = 1 << 14
"""Of one forward pass, ``<s>`` and ``</s>`` among them: 32 of the longest texts, a thousand of the usual 15 words. What
large holds of them at a time takes half a gigabyte in float16. On a CPU ``batch`` (32) texts are the most besides:
more do not fill it better."""
PAUSE_S = 1.0


class RobertaConfig(StageConfig):
    """The defaults are those of USC, ABAW5: large, the words uttered from t - 2 s to t + 2 s."""

    added: ClassVar[frozenset[str]] = frozenset({"context", "pause_s", "pool"})

    weights: str = "roberta-large"
    architecture: Literal["large", "base", "small", "xlmr-large", "xlmr-small"] = "large"
    """Fixes the width of the features, 1024, 768, 64, 1024, 64, and the vocabulary: ``xlmr`` reads a hundred languages,
    the others English."""
    before_s: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    after_s: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    """A word belongs to frame t if its span meets [t - before_s, t + after_s]."""
    context: Literal["window", "utterance"] = "window"
    """What the network reads at once: the words of a frame's window, as USC's paper has it, or whole utterances, of
    which a frame has the tokens of its window's words, as the authors' program does it."""
    pause_s: float = Field(default=PAUSE_S, ge=0, le=3600, allow_inf_nan=False)
    """With ``context: utterance``: a longer silence than this ends an utterance. Punctuation does not."""
    pool: Literal["tokens", "mean"] = "tokens"
    """``tokens``: a row per token, ``token``. ``mean``: their mean, ``feature``, a single row per frame."""
    dtype: Literal["float16", "float32"] = "float16"

    @model_validator(mode="after")
    def _pauses_end_utterances(self) -> "RobertaConfig":
        if self.context == "window" and self.pause_s != PAUSE_S:
            raise ValueError(f"pause_s is {self.pause_s:g}, but context is window; pauses matter to context: utterance")
        return self


class Roberta(ClipStage[RobertaConfig]):
    """Last hidden states of the words of each frame's window, read as one text or within their utterances.

    Frames share word sets, and texts come again: each distinct text is encoded once, and ``range`` says which rows are
    a frame's. ``<s>`` and ``</s>`` frame every text that the network reads and are not kept, so a text over the
    network's limit is read in consecutive pieces whose tokens stand one after another.
    """

    name = "roberta"
    version = 1
    config_type = RobertaConfig
    inputs = ("transcribe.text", "transcribe.start_s", "transcribe.end_s", "frames.pts_s")
    device = "gpu"

    @property
    def outputs(self) -> tuple[Output, ...]:
        width = roberta.ARCHITECTURES[self.config.architecture].width
        name, clock = ("token", TOKENS) if self.config.pool == "tokens" else ("feature", TEXTS)
        return (
            # Rows [start, stop) of each frame; start == stop: no words.
            Output("range", FRAMES, ("end",), (2,), "int32"),
            Output(name, clock, ("feature",), (width,), self.config.dtype),
        )

    def random_weights(self) -> "dict[str, np.ndarray[Any, Any]]":
        return roberta.random_weights(self.config.architecture)

    def setup(self, context: Context) -> None:
        if context.weights is None:
            raise ValueError("stage roberta needs weights")
        self._tokenizer = roberta.load_tokenizer(self.config.architecture, context.weights)
        self._device, self._precision = context.device, context.precision
        self._model = roberta.load(self.config.architecture, context.weights, context.device, context.precision)

    def compute(self, inputs: Mapping[str, Any]) -> ClipResult:
        """``transcribe.text``: list of W str; ``.start_s``, ``.end_s``: float64 [W]; ``frames.pts_s``: float64 [T]."""
        import torch

        words: list[str] = inputs["transcribe.text"]
        start_s, end_s, pts_s = (
            inputs[name].cpu().numpy() for name in ("transcribe.start_s", "transcribe.end_s", "frames.pts_s")
        )
        sets, which = words_met(start_s, end_s, pts_s, self.config.before_s, self.config.after_s)
        met = sorted({int(word) for indices in sets for word in indices})
        notes = {"words": len(words), "words_never_met": len(words) - len(met), "word_sets": len(sets)}
        if self.config.context == "window":
            read = self._windows(words, sets)
        else:
            read = self._utterances(words, utterances(start_s, end_s, self.config.pause_s), sets, met)
        if not len(read.token):  # no word is met, or none that the vocabulary can spell
            return ClipResult({}, notes, empty="no_words")
        name, values, rows = "token", read.token, read.rows
        if self.config.pool == "mean":
            name, (values, rows) = "feature", _means(values, rows)
        of_set = torch.tensor(rows, dtype=torch.int32)  # [sets, 2]
        # float32; the runner narrows it to ``dtype`` and looks for overflow.
        return ClipResult({name: values, "range": of_set[torch.from_numpy(which)]}, {**notes, **read.notes})

    def _windows(self, words: Sequence[str], sets: "Sequence[NDArray[np.int64]]") -> "_Read":
        """Each distinct text of a word set, read by itself."""
        said = [" ".join(words[i] for i in indices) for indices in sets]
        texts = [text for text in dict.fromkeys(said) if text]
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        token, notes = self._encode([encoding.ids for encoding in encodings])
        rows = {"": (0, 0)}
        rows.update(zip(texts, _spans(len(encoding.ids) for encoding in encodings), strict=True))
        return _Read(token, [rows[text] for text in said], notes)

    def _utterances(
        self,
        words: Sequence[str],
        spans: "NDArray[np.int64]",
        sets: "Sequence[NDArray[np.int64]]",
        met: Sequence[int],
    ) -> "_Read":
        """Each distinct text of an utterance that some frame meets, read as a whole; of its tokens those of ``met``."""
        import torch

        utterance_of = np.repeat(np.arange(len(spans)), spans[:, 1] - spans[:, 0])  # [W]
        heard = [spans[utterance].tolist() for utterance in dict.fromkeys(utterance_of[met].tolist())]
        texts = [*dict.fromkeys(" ".join(words[start:stop]) for start, stop in heard)]
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        token, notes = self._encode([encoding.ids for encoding in encodings], evenly=True)
        begins = [start for start, _ in _spans(len(encoding.ids) for encoding in encodings)]
        of_text = dict(zip(texts, zip(encodings, begins, strict=True), strict=True))
        read: dict[int, range] = {}  # word -> rows of ``token``
        for start, stop in heard:
            encoding, begin = of_text[" ".join(words[start:stop])]
            spoken = _spans(_tokens_per_word(words[start:stop], encoding))
            read.update((start + i, range(begin + first, begin + end)) for i, (first, end) in enumerate(spoken))
        kept, rows = _laid_out(sets, met, read)
        return _Read(token[torch.tensor(kept, dtype=torch.long)], rows, {"utterances": len(spans), **notes})

    def _encode(self, texts: Sequence[Sequence[int]], *, evenly: bool = False) -> "tuple[Tensor, dict[str, object]]":
        """Tokens of all texts, one after another, float32 [K, D]; and what the record notes.

        Args:
            evenly: cut a text that is too long into pieces of about one length, so that no word is left alone at its
                end. Windows are cut as they were when the first stores were made, full pieces first.
        """
        import torch

        pieces = [piece for text in texts for piece in _pieces(text, evenly=evenly)]
        batches = list(_equal_lengths([len(piece) for piece in pieces], self._texts_at_once))
        # All ids in the order of the batches, and where each token's state goes: they cross to the device once.
        starts = list(itertools.accumulate((len(piece) for piece in pieces), initial=0))
        ids = [i for batch in batches for at in batch for i in (roberta.BEGIN, *pieces[at], roberta.END)]
        rows = [row for batch in batches for at in batch for row in range(starts[at], starts[at + 1])]
        ids_here, rows_here = (torch.tensor(found, device=self._device) for found in (ids, rows))
        width = roberta.ARCHITECTURES[self.config.architecture].width
        with torch.inference_mode():
            token = torch.empty((len(rows), width), dtype=self._precision, device=self._device)
            read = placed = 0
            for batch in batches:
                length = len(pieces[batch[0]])
                num_ids, num_rows = len(batch) * (length + 2), len(batch) * length
                given = ids_here[read : read + num_ids].view(len(batch), length + 2)
                states = self._model(given).last_hidden_state[:, 1:-1]  # [B, length, D]
                token[rows_here[placed : placed + num_rows]] = states.flatten(0, 1)
                read, placed = read + num_ids, placed + num_rows
        notes: dict[str, object] = {"texts": len(texts), "forwards": len(batches)}
        if roberta.ARCHITECTURES[self.config.architecture].vocabulary == "unigram":
            unknown = sum(text.count(roberta.UNKNOWN) for text in texts)
            notes |= {"language": "multilingual", "unknown_tokens": unknown}
        return token.cpu().float(), notes

    def _texts_at_once(self, length: int) -> int:
        """How many texts of ``length`` tokens go through the network together."""
        fit = max(1, TOKENS_AT_ONCE // (length + 2))
        return min(fit, self.batch) if self._device.type == "cpu" else fit


@dataclass(frozen=True)
class _Read:
    """What the network said of a clip."""

    token: "Tensor"
    """[K, D] float32."""
    rows: list[tuple[int, int]]
    """Of each word set: its rows [start, stop) of ``token``."""
    notes: Mapping[str, object]


def _spans(lengths: Iterable[int]) -> list[tuple[int, int]]:
    """[start, stop) of parts that stand one after another."""
    return [*itertools.pairwise(itertools.accumulate(lengths, initial=0))]


def _pieces(ids: Sequence[int], *, evenly: bool) -> Iterator[Sequence[int]]:
    count = -(-len(ids) // PIECE_TOKENS)
    if evenly:
        edges = [len(ids) * number // count for number in range(count + 1)] if count else []
    else:
        edges = [*range(0, len(ids), PIECE_TOKENS), len(ids)]
    return (ids[start:stop] for start, stop in itertools.pairwise(edges))


def _tokens_per_word(words: Sequence[str], encoding: "Encoding") -> list[int]:
    """How many tokens of " ".join(words) are each word's. The space before a word is the word's."""
    ends = np.cumsum([len(word) + 1 for word in words]) - 1  # of each word, in letters of the text
    starts = np.array([start for start, _ in encoding.offsets], dtype=np.int64)
    counts: list[int] = np.bincount(np.searchsorted(ends, starts, side="right"), minlength=len(words)).tolist()
    return counts


def _laid_out(
    sets: "Sequence[NDArray[np.int64]]", met: Sequence[int], read: Mapping[int, range]
) -> tuple[list[int], list[tuple[int, int]]]:
    """Which rows to keep, in which order, and [start, stop) of each word set among them.

    They are in the order of the words, so a window over several utterances is one range, as long as it has every met
    word between its first and its last. One that leaves a word out (people talk at once, and one stops before the
    other) gets a copy of its rows, behind all others.

    Args:
        met: the words that any set has, in order.
        read: word -> rows of what was read.
    """
    kept = [row for word in met for row in read[word]]
    place = dict(zip(met, _spans(len(read[word]) for word in met), strict=True))
    rank = {word: number for number, word in enumerate(met)}
    rows = []
    for indices in sets:
        have = indices.tolist()
        if not have:
            rows.append((0, 0))
        elif rank[have[-1]] - rank[have[0]] == len(have) - 1:
            rows.append((place[have[0]][0], place[have[-1]][1]))
        else:
            start = len(kept)
            kept += [row for word in have for row in read[word]]
            rows.append((start, len(kept)))
    return kept, rows


def _means(token: "Tensor", rows: Sequence[tuple[int, int]]) -> "tuple[Tensor, list[tuple[int, int]]]":
    """One row per distinct range of tokens, [U, D], and the row of each range; none for an empty one."""
    import torch

    number = {row: i for i, row in enumerate(dict.fromkeys(row for row in rows if row[0] < row[1]))}
    means = torch.stack([token[start:stop].mean(dim=0) for start, stop in number])
    return means, [(number[row], number[row] + 1) if row in number else (0, 0) for row in rows]


def _equal_lengths(lengths: Sequence[int], most: Callable[[int], int]) -> Iterator[list[int]]:
    """Indices of pieces of one length, at most ``most(length)`` together: nothing is padded, so nothing is masked, and
    nothing beside a text changes what it is paired with but the clip itself."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        by_length[length].append(index)
    for length, members in by_length.items():
        for at in range(0, len(members), most(length)):
            yield members[at : at + most(length)]

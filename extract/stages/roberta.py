"""RoBERTa features of the words around each frame: one vector per token."""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from extract.models import roberta
from extract.stage import ClipResult, ClipStage, Context, Output, StageConfig
from extract.timeline import FRAMES, Table, words_met

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

TOKENS = Table("token")
PIECE_TOKENS = roberta.MAX_TOKENS - 2
"""Tokens that fit between ``<s>`` and ``</s>``."""
TOKENS_AT_ONCE = 1 << 14
"""Of one forward pass, ``<s>`` and ``</s>`` among them: 32 of the longest texts, a thousand of the usual 15 words. What
large holds of them at a time takes half a gigabyte in float16. On a CPU ``batch`` (32) texts are the most besides:
more do not fill it better."""


class RobertaConfig(StageConfig):
    """The defaults are those of USC, ABAW5: large, the words uttered from t - 2 s to t + 2 s."""

    weights: str = "roberta-large"
    architecture: Literal["large", "base", "small"] = "large"
    """Fixes the width of the features: 1024, 768, 64."""
    before_s: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    after_s: float = Field(default=2.0, ge=0, allow_inf_nan=False)
    """A word belongs to frame t if its span meets [t - before_s, t + after_s]."""
    dtype: Literal["float16", "float32"] = "float16"


class Roberta(ClipStage[RobertaConfig]):
    """Last hidden states of the words of each frame's window, read as one text.

    Frames share word sets, and texts come again: each distinct text is encoded once, and ``range`` says which token
    rows are a frame's. ``<s>`` and ``</s>`` frame every text that the network reads and are not kept, so a text over
    the network's limit is read in consecutive pieces whose tokens stand one after another.
    """

    name = "roberta"
    version = 1
    config_type = RobertaConfig
    inputs = ("transcribe.text", "transcribe.start_s", "transcribe.end_s", "frames.pts_s")
    device = "gpu"
    copyable = True

    @property
    def outputs(self) -> tuple[Output, ...]:
        width = roberta.ARCHITECTURES[self.config.architecture].width
        return (
            # Token rows [start, stop) of each frame; start == stop: no words.
            Output("range", FRAMES, ("end",), (2,), "int32"),
            Output("token", TOKENS, ("feature",), (width,), self.config.dtype),
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
        met = {int(word) for indices in sets for word in indices}
        notes = {"words": len(words), "words_never_met": len(words) - len(met), "word_sets": len(sets)}
        if not met:
            return ClipResult({}, notes, empty="no_words")
        said = [" ".join(words[i] for i in indices) for indices in sets]
        texts = [text for text in dict.fromkeys(said) if text]
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]
        token, forwards = self._encode(ids)
        stops = torch.tensor([len(text) for text in ids]).cumsum(0)  # [U]
        rows = {"": (0, 0)}
        for text, length, stop in zip(texts, map(len, ids), stops.tolist(), strict=True):
            rows[text] = (stop - length, stop)
        of_set = torch.tensor([rows[text] for text in said], dtype=torch.int32)  # [sets, 2]
        # float32; the runner narrows it to ``dtype`` and looks for overflow.
        found = {"token": token, "range": of_set[torch.from_numpy(which)]}
        return ClipResult(found, {**notes, "texts": len(texts), "forwards": forwards})

    def _encode(self, texts: Sequence[Sequence[int]]) -> "tuple[Tensor, int]":
        """Tokens of all texts, one after another, float32 [K, D]; and how often the network ran."""
        import torch

        pieces = [text[at : at + PIECE_TOKENS] for text in texts for at in range(0, len(text), PIECE_TOKENS)]
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
            return token.cpu().float(), len(batches)

    def _texts_at_once(self, length: int) -> int:
        """How many texts of ``length`` tokens go through the network together."""
        fit = max(1, TOKENS_AT_ONCE // (length + 2))
        return min(fit, self.batch) if self._device.type == "cpu" else fit


def _equal_lengths(lengths: Sequence[int], most: Callable[[int], int]) -> Iterator[list[int]]:
    """Indices of pieces of one length, at most ``most(length)`` together: nothing is padded, so nothing is masked, and
    nothing beside a text changes what it is paired with but the clip itself."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, length in enumerate(lengths):
        by_length[length].append(index)
    for length, members in by_length.items():
        for at in range(0, len(members), most(length)):
            yield members[at : at + most(length)]

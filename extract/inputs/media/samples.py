"""Mono samples: gathered while a file is decoded, resampled, cut to the clip, and kept on disk where they are many."""

import math
import os
import tempfile
import weakref
from dataclasses import dataclass, field
from fractions import Fraction
from typing import IO, Any

import numpy as np
import soxr
from numpy.typing import NDArray

from extract.errors import MachineError
from extract.inputs.media.span import Span

HELD_SAMPLES = 300 * 16_000
"""Longer sound (five minutes at 16 kHz) is kept in a temporary file, not in memory."""


class Sound:
    """Mono samples in [-1, 1], gathered block by block; from HELD_SAMPLES on they are kept in an unnamed file."""

    num_clipped: int = 0
    """Samples that lay outside [-1, 1]."""

    def __init__(self) -> None:
        self._num = 0
        self._blocks: list[NDArray[np.float32]] = []
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return self._num

    @property
    def in_memory(self) -> bool:
        """Whether the samples are in memory, not in a file."""
        return self._file is None

    def append(self, block: NDArray[np.float32]) -> None:
        """Add samples [n] at the end.

        Raises ``MachineError``: the disk for temporary files is full.
        """
        self.num_clipped += int(np.count_nonzero(np.abs(block) > 1))
        block = np.clip(block, -1, 1)
        self._num += len(block)
        if self._file is None:
            self._blocks.append(block)
            if self._num <= HELD_SAMPLES:
                return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when this object goes
                weakref.finalize(self, self._file.close)
                blocks, self._blocks = self._blocks, []
            else:
                blocks = [block]
            for waiting in blocks:
                self._file.write(waiting.tobytes())
            self._file.flush()
        except OSError as error:
            raise MachineError(
                "sound of more than five minutes is kept in a temporary file, which cannot be written "
                f"({error.strerror or error}); free space in the folder for temporary files, or set TMPDIR to another"
            ) from error

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        """Consecutive samples."""
        if self._file is None:
            if len(self._blocks) != 1:
                self._blocks = [np.concatenate(self._blocks) if self._blocks else np.zeros(0, dtype=np.float32)]
            return self._blocks[0][part]
        start, stop, step = part.indices(self._num)
        if step != 1:
            raise ValueError(f"step {step}: only consecutive samples can be read")
        # Not seek and read: several stages may hear the recording at the same time.
        data = os.pread(self._file.fileno(), 4 * max(stop - start, 0), 4 * start)
        return np.frombuffer(data, dtype=np.float32).copy()


@dataclass(frozen=True)
class Audio:
    """The sound of one clip."""

    sound: Sound
    """Mono, the mean of the channels: its length and slices of it, however long it is."""
    start_s: float
    """Time of sample 0 in seconds on the clip's clock; sample k is at ``start_s + k / hz``."""
    notes: dict[str, Any] = field(default_factory=dict)
    """Facts for the record that are no errors, JSON values.

    ``audio_streams {count, taken}``, ``audio_gaps [[start_s, duration_s], ...]`` (filled with silence),
    ``audio_overlap_s`` (seconds dropped because the times ran back), ``clipped_samples`` (a lossy decoder's overshoot),
    ``start_assumed`` (the stream has no times: it is taken to begin at 0 s), ``truncated_at_s``,
    ``undecodable_packets {count, error}``.
    """

    @property
    def samples(self) -> NDArray[np.float32]:
        """All samples [n] in memory."""
        return self.sound[:]


class Recording:
    """Gathers mono sound of any rate as samples at ``hz``, and keeps those inside the span."""

    def __init__(self, hz: int, start: Fraction, span: Span) -> None:
        # Sample k is at start + k / hz; those with span.start <= time < span.end are kept.
        self._first = 0 if span.start is None else max(0, math.ceil((span.start - start) * hz))
        self._stop = None if span.end is None else max(0, math.ceil((span.end - start) * hz))
        self.first_kept = start + Fraction(self._first, hz)
        """Time of the first sample that is kept."""
        self._hz = hz
        self._rate: int | None = None
        self._resampler: soxr.ResampleStream | None = None
        self._num_made = 0
        self._kept = Sound()

    @property
    def complete(self) -> bool:
        """Nothing that may follow lies inside the span."""
        return self._stop is not None and self._num_made >= self._stop

    def add(self, wave: NDArray[np.float32], rate: int) -> None:
        """Add samples [n] of ``rate`` Hz."""
        if rate != self._rate:  # the first samples, or a stream that changes its rate
            self._flush()
            self._rate = rate
            self._resampler = None if rate == self._hz else soxr.ResampleStream(rate, self._hz, 1, dtype="float32")
        self._keep(wave if self._resampler is None else self._resampler.resample_chunk(wave))

    def add_silence(self, num_samples: int, rate: int) -> None:
        """Add zeros of ``rate`` Hz."""
        for done in range(0, num_samples, rate):  # a second at a time: a long gap needs no long array
            self.add(np.zeros(min(rate, num_samples - done), dtype=np.float32), rate)

    def finish(self) -> Sound:
        """All samples that were kept; nothing can be added afterwards."""
        self._flush()
        return self._kept

    def _flush(self) -> None:
        if self._resampler is not None:
            self._keep(self._resampler.resample_chunk(np.zeros(0, dtype=np.float32), last=True))
            self._resampler = None

    def _keep(self, wave: NDArray[np.float32]) -> None:
        first = max(0, self._first - self._num_made)
        stop = len(wave) if self._stop is None else max(0, self._stop - self._num_made)
        self._num_made += len(wave)
        if len(wave[first:stop]):
            self._kept.append(wave[first:stop])

"""The part of a recording that belongs to the clip, between ``start_s`` and ``end_s`` of the manifest."""

from dataclasses import dataclass
from fractions import Fraction

from extract.timeline import NS_PER_S


@dataclass(frozen=True)
class Span:
    """A half-open range [start, end) of the presentation clock, in seconds."""

    start: Fraction | None
    """``None``: from the beginning of the stream."""
    end: Fraction | None
    """``None``: to its end."""

    @classmethod
    def of(cls, start_s: float | None, end_s: float | None) -> "Span":
        """The numbers that a person meant: 0.1 is 1/10, and the printed time of a frame at 1/30 s is 1/30."""
        start, end = (None if s is None else Fraction(s).limit_denominator(NS_PER_S) for s in (start_s, end_s))
        return cls(start, end)

    def ends_by(self, at: Fraction) -> bool:
        """Whether the span has ended at the time ``at``."""
        return self.end is not None and at >= self.end

    def starts_after(self, at: Fraction) -> bool:
        """Whether the span begins only after the time ``at``."""
        return self.start is not None and at < self.start

    def overlap(self, start: Fraction, stop: Fraction) -> Fraction:
        """Seconds of [start, stop) that lie inside the span."""
        start = start if self.start is None else max(start, self.start)
        stop = stop if self.end is None else min(stop, self.end)
        return max(stop - start, Fraction(0))

"""Where decoded sound lies on the clip's clock: how much silence fills a gap, and how much of an overlap is dropped.

Both are bounded, so that a few flipped bits cannot demand more memory than a machine has, or empty a clip unnoticed:

* a gap is an hour at most (MAX_GAP_S);
* all silence inside the clip's span is at most as long as the video of the file or as its sound that decodes, whichever
  is longer, and four hours at most (MAX_SILENCE_S). The video's length is the sum of the steps between the times of its
  packets, no step counting for more than ten seconds (MAX_PICTURE_S). The durations in the header are not used;
* no more sound is dropped than is kept.
"""

import itertools
from collections.abc import Iterable
from fractions import Fraction

from extract.errors import ClipError
from extract.inputs.media.span import Span

MAX_JITTER_S = Fraction(40, 1000)
"""Sound whose times and number of samples disagree by more has a gap or overlap; less is the container's rounding."""

MAX_GAP_S = 3600
"""A longer jump of the times is a broken clock (a counter that wrapped around), not an hour of silence to fill in."""

MAX_SILENCE_S = 4 * 3600
"""The gaps of one clip may not need more silence than this, however long its video is."""

MAX_PICTURE_S = 10
"""A frame that is shown for longer counts as this long when the length of a video bounds the silence."""


class SoundTimes:
    """Places decoded sound on the clip's clock by its times and its number of samples; holds no samples itself."""

    def __init__(self, start: Fraction, span: Span) -> None:
        self.end = start
        """The time right after the last sample that was placed, where the next one is expected."""
        self.sound = self.silence = self.dropped = Fraction(0)
        """Seconds of sound that was placed, of silence inside the span, of sound left out."""
        self.first_jump: tuple[Fraction, Fraction] | None = None
        """From where to where the times first jumped ahead, inside the span."""
        self.first_overlap: Fraction | None = None
        """Where the times first ran back."""
        self._span = span

    def place(self, at: Fraction | None, num_samples: int, rate: int) -> tuple[int, int]:
        """Place the next ``num_samples``; ``at`` is their time, ``None`` if the stream states none.

        Returns:
            Samples of silence to insert before them, and how many of them to drop.
        """
        late = Fraction(0) if at is None else at - self.end
        num_silent = round(late * rate) if late > MAX_JITTER_S else 0
        num_dropped = min(num_samples, round(-late * rate)) if late < -MAX_JITTER_S else 0
        resumed = self.end + Fraction(num_silent, rate)
        inside = self._span.overlap(self.end, resumed)
        if inside and self.first_jump is None:
            self.first_jump = self.end, resumed
        if num_dropped and self.first_overlap is None:
            self.first_overlap = self.end
        self.silence += inside
        self.sound += Fraction(num_samples - num_dropped, rate)
        self.dropped += Fraction(num_dropped, rate)
        self.end = resumed + Fraction(num_samples - num_dropped, rate)
        return num_silent, num_dropped

    @property
    def silence_is_doubtful(self) -> bool:
        """Whether there is more silence than the sound so far explains: the rest of the file decides."""
        return self.silence > min(self.sound, Fraction(MAX_SILENCE_S))

    def check_silence(self, video: Fraction) -> None:
        """Check the silence of a whole file whose video lasts ``video`` seconds.

        Raises ``ClipError``: ``bad_times`` if the gaps need too much of it.
        """
        allowed = min(max(video, self.sound), Fraction(MAX_SILENCE_S))
        if self.first_jump is not None and self.silence > allowed:
            jump_from, jump_to = self.first_jump
            raise ClipError(
                "bad_times",
                f"the gaps in the sound's times need {float(self.silence):.3f} s of silence, the first from "
                f"{float(jump_from):.3f} s to {float(jump_to):.3f} s; expected {float(allowed):.3f} s at most, because "
                f"the file holds {float(self.sound):.3f} s of sound and {float(video):.3f} s of video: cut the clip "
                "before the jump with end_s or after it with start_s, or give the sound new times "
                "(ffmpeg -i IN -vn -af asetpts=N/SR/TB OUT.wav) and name that file as `audio` in the manifest",
            )

    def check_overlap(self) -> None:
        """Check what was dropped of a whole stream.

        Raises ``ClipError``: ``bad_times`` if it is more than was kept.
        """
        if self.dropped > self.sound:
            raise ClipError(
                "bad_times",
                f"the sound's times run back at {float(self.first_overlap or 0):.3f} s, so that "
                f"{float(self.dropped):.3f} s of {float(self.sound + self.dropped):.3f} s would be dropped as "
                "repeated; expected times that increase: give the sound new times "
                "(ffmpeg -i IN -vn -af asetpts=N/SR/TB OUT.wav) and name that file as `audio` in the manifest",
            )


def check_gap(start: Fraction, length: Fraction) -> None:
    """Check a single gap.

    Raises ``ClipError``: ``bad_times`` if it is longer than MAX_GAP_S.
    """
    if length > MAX_GAP_S:
        raise ClipError(
            "bad_times",
            f"the sound's times jump from {float(start):.3f} s to {float(start + length):.3f} s; expected no gap of "
            f"more than {MAX_GAP_S} s: remux the file (ffmpeg -i IN -c copy OUT), or cut the clip before the jump "
            "with end_s",
        )


def length_of_video(times: Iterable[Fraction]) -> Fraction:
    """Seconds that a video stream lasts by the times of its packets, in any order."""
    steps = (b - a for a, b in itertools.pairwise(sorted(times)))
    return sum((min(step, Fraction(MAX_PICTURE_S)) for step in steps), Fraction(0))

"""What a run tells: while it works, how far it is; at its end, what it did and how fast."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from extract.errors import CorruptError
from extract.running.handover import Outcome

WARNINGS = {
    "truncated_at_s": "the file is cut off; what decodes ends at {} s",
    "declared_frames": "the header declares {} frames, {rows} decode",
    "video_streams": "{0[count]} video streams; number {0[taken]} is taken",
    "audio_streams": "{0[count]} audio streams; number {0[taken]} is taken",
    "corrupt_frames": "frames decoded with errors: {0[count]}, the first at {0[first_s]} s",
    "undecodable_packets": "packets that do not decode: {0[count]} ({0[error]})",
    "frames_beyond_movie": "crops are numbered beyond the movie's last frame: {} times are continued",
    "unreadable_crops": "damaged crops, taken for absent: {0[count]}, the first {0[first]}",
    "repaired_pts": "presentation times repaired: {0[absent]} absent, {0[not_increasing]} not increasing",
    "start_assumed": "no presentation time on the sound; it is taken to begin at 0 s",
    "audio_gaps": "gaps in the sound, filled with silence ([start_s, duration_s]): {}",
    "audio_overlap_s": "{} s of overlapping sound left out",
    "clipped_samples": "samples beyond full scale, clipped: {}",
    "au_rows": "{} rows of AU labels for {rows} frames, within label_slack",
    "left_out_aus": "columns of the label file that are none of `labels.aus` (default: the twelve) are left out: {}",
    "expr_rows": "{} rows of expression labels for {rows} frames, within label_slack",
    "va_rows": "{} rows of valence and arousal for {rows} frames, within label_slack",
    "intensity_rows": "{} rows of AU intensities for {rows} frames, within label_slack",
    "not_imported": "label files that the manifest names, but not the config (`labels.also: [va, intensity]`): {}",
}
"""Notes of a record that a run tells of; the others are facts that need no eye."""


@dataclass(frozen=True)
class Failure:
    """One instance of one clip that could not be computed."""

    clip: str
    instance: str
    reason: str
    message: str
    cause: str | None = None
    """The instance whose failure this one follows from; None where it failed by itself."""


@dataclass(frozen=True)
class Notice:
    """Something that a user should know of a run, and which clip and instance it concerns."""

    message: str
    clip: str | None = None
    """None: it concerns the run."""
    instance: str | None = None

    def __str__(self) -> str:
        where = ", ".join([*([f"clip {self.clip}"] if self.clip else []), *([self.instance] if self.instance else [])])
        return f"{where}: {self.message}" if where else self.message


@dataclass(frozen=True)
class Speed:
    """How fast a run was, and what held it up."""

    num_frames: int
    """Frames that were gone through."""
    seconds: float
    """From the first clip to the last, without planning and loading of models."""
    setup_s: float
    """Loading of models."""
    busy: Mapping[str, float]
    """Lane -> share of the time that it was at work, of 1.0 for all its threads. ``gpu`` by the device's own clock."""

    @property
    def frames_per_s(self) -> float:
        """Over all stages, models loaded."""
        return self.num_frames / self.seconds if self.seconds > 0 else 0.0

    @property
    def bottleneck(self) -> str | None:
        """The lane that was busiest; None where nothing was done."""
        return max(self.busy, key=lambda lane: self.busy[lane], default=None)


@dataclass
class Report:
    """What a run did."""

    run: str
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """Instance -> how many clips of the run are ``done``, ``empty``, ``failed`` in the store now."""
    computed: int = 0
    """Instances of clips that this run finished: ``done`` or ``empty``."""
    failures: list[Failure] = field(default_factory=list)
    busy: list[Notice] = field(default_factory=list)
    """Clips that another run was working on, with which."""
    damaged: list[Notice] = field(default_factory=list)
    """Clips whose stored bytes fail their checksum; the messages name array and block."""
    warnings: list[Notice] = field(default_factory=list)
    untrained: list[str] = field(default_factory=list)
    """Instances with random weights."""
    seconds: float = 0.0
    speed: Speed | None = None
    """None where nothing was to be done."""

    @property
    def exit_code(self) -> int:
        """0 all done, 1 some clips failed or are another run's, 4 stored bytes are damaged."""
        if self.damaged:
            return CorruptError.exit_code
        return 1 if self.failures or self.busy else 0

    def count(self, instance: str, outcome: Outcome | None, clip: str) -> None:
        """Add how one instance of one clip stands."""
        counts = self.counts.setdefault(instance, Counter())
        if outcome is None:
            return
        counts[outcome.state] += 1
        if outcome.state == "failed":
            self.failures.append(Failure(clip, instance, outcome.reason or "", outcome.message or "", outcome.cause))


class Progress:
    """Receives how far the run is; the command line shows it. This one shows nothing.

    A frame counts once for its clip: where two passes go through it, half in each.
    """

    def start(self, sizes: Mapping[str, int]) -> None:
        """The work begins: clips with something to do -> bytes of their recording, to judge those not opened yet by."""

    def expect(self, clip: str, frames: int) -> None:
        """The clip has about so many frames to do, by its record or its header; 0: nobody knows."""

    def frames(self, clip: str, count: float) -> None:
        """So many more of the frames to do were gone through."""

    def clip(self, clip: str, failed: int) -> None:
        """A clip is through; ``failed`` clips of the run so far."""

"""The section ``fusion.post`` of a config: what is done with the network's scores before they are decisions."""

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from extract.au import AU_NAMES, au_name, au_number
from extract.config import Frozen
from extract.names import suggestion

Step: TypeAlias = Literal["smooth", "pairs", "thresholds"]
NoFace: TypeAlias = Literal["network", "interpolate", "mask"]

LONGEST_FRAMES = 100_000
LONGEST_S = 3600.0


class PostConfig(Frozen):
    """Post-processing. A field that is ``null`` is what the preset says."""

    preset: Literal["default", "paper", "none"] = "default"
    """``paper`` (USC, Tables 2 and 3): thresholds tuned on the smoothed scores of the split ``val``, then the two
    equations between AUs, then those thresholds. ``default``: smoothing, the equations that raise F1 on ``val``, then
    thresholds tuned on what comes out where they hold on source videos that they were not tuned on; on fewer than ten
    source videos these two only if asked for by name. ``none``: active where the logit is >= 0."""
    smooth: int | None = Field(default=None, ge=1, le=LONGEST_FRAMES)
    """Frames in the mean of logits: 6 (the paper's) for both presets, of frames i-3 to i+2. 1: no smoothing."""
    smooth_s: float | None = Field(default=None, gt=0, le=LONGEST_S, allow_inf_nan=False)
    """Instead of ``smooth``: seconds, [t - s/2, t + s/2). Means the same at every frame rate; six frames of the paper's
    videos (30 fps) are 0.2 s."""
    smooth_by_au: Mapping[str, float] = {}
    """Windows of single AUs, as ``AU12: 10``: frames, or seconds if ``smooth_s`` is set."""
    no_face: NoFace = "network"
    """Scores of frames without a face. ``network``: what the network says from sound and words. ``interpolate``: linear
    in time between the nearest frames of the clip with a face, held at its ends, before smoothing. ``mask``: such a
    frame keeps its own score and takes part in no neighbour's window. Every annotated frame counts all the same."""
    pairs: Literal["paper", "mined", "none"] | None = None
    """Correction of one AU's probability by others'. ``paper``: AU24 by AU04, AU26 by AU01 and AU02. ``mined``: found
    from the correlation of the training labels, kept where they raise F1 on ``val``."""
    check_pairs: bool | None = None
    """Whether an equation of ``pairs: paper`` is dropped if it does not raise its AU's F1 on ``val``: true for the
    preset ``default``, false for ``paper``."""
    thresholds: Literal["tuned", "paper"] | float | None = None
    """``tuned``: each AU's best on ``val``. ``paper``: the twelve published ones. A number: the same for all AUs."""
    check_thresholds: bool | None = None
    """Whether a tuned threshold gives way to 0.5 unless it is better by a standard error on source videos of ``val``
    that it was not tuned on (five groups, in turn): true for the preset ``default``, unless ``thresholds`` names tuned
    ones."""
    temperature: bool = False
    """Divide the logits of each AU by the number that makes its probabilities fit ``val`` best (least NLL)."""

    @field_validator("smooth_by_au", mode="after")
    @classmethod
    def _named(cls, windows: Mapping[str, float]) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for name, size in windows.items():
            number = au_number(name)
            if number is None:
                raise ValueError(f"{name!r} is no action unit; {suggestion(name, AU_NAMES)}")
            if au_name(number) in found:
                raise ValueError(f"{au_name(number)} is there twice")
            if not 0 < size <= LONGEST_FRAMES:
                raise ValueError(f"{name}: found {size}, expected a window above 0 and at most {LONGEST_FRAMES}")
            found[au_name(number)] = size
        return found

    @field_validator("thresholds", mode="before")
    @classmethod
    def _known_threshold(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file holds
        known = ("tuned", "paper")
        if isinstance(value, str) and value not in known:
            raise ValueError(f"found {value!r}; {suggestion(value, known)} (or a number between 0 and 1)")
        if isinstance(value, bool) or (isinstance(value, int | float) and not 0 < value < 1):
            raise ValueError(f"found {value}, expected a number between 0 and 1, or one of {', '.join(known)}")
        return value

    @model_validator(mode="after")
    def _one_unit(self) -> "PostConfig":
        if self.smooth is not None and self.smooth_s is not None:
            raise ValueError(f"smooth: {self.smooth} frames and smooth_s: {self.smooth_s} s; name one of the two")
        for name, size in self.smooth_by_au.items():
            if self.smooth_s is None and size != int(size):
                raise ValueError(
                    f"smooth_by_au: {name} has {size} frames, expected a whole number (seconds need smooth_s)"
                )
            if self.smooth_s is not None and size > LONGEST_S:
                raise ValueError(f"smooth_by_au: {name} has {size} s, expected at most {LONGEST_S:g}")
        return self

    def resolved(self) -> "PostConfig":
        """The same with every field that the preset decides filled in; ``smooth`` stays None where ``smooth_s`` is."""
        plain = self.preset == "none"
        by_preset: dict[str, Any] = {
            "smooth": 1 if plain else 6,
            "pairs": "none" if plain else "paper",
            "check_pairs": self.preset == "default",
            "check_thresholds": self.preset == "default" and self.thresholds is None,
            "thresholds": 0.5 if plain else "tuned",
        }
        if self.smooth_s is not None:
            del by_preset["smooth"]
        wanted = {name: value for name, value in by_preset.items() if getattr(self, name) is None}
        return self.model_copy(update=wanted)

    @property
    def order(self) -> tuple[Step, ...]:
        """The steps after the network, as a table of results shows them."""
        if self.preset == "paper":
            return ("smooth", "thresholds", "pairs")
        return ("smooth", "pairs", "thresholds")

"""The video of a clip: its frames, and when each is shown."""

from extract.stage import Output, SourceStage, StageConfig
from extract.timeline import FRAMES


class FramesConfig(StageConfig):
    repair_pts: bool = False
    """Replace presentation times that are absent or do not increase, instead of failing the clip."""


class Frames(SourceStage[FramesConfig]):
    """Every frame that decodes, in order of presentation; the runner fills it from the movie."""

    name = "frames"
    version = 1
    config_type = FramesConfig
    clock = True
    reads = "video"
    parts = ("media", "choice.fps", "choice.span")

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (
            Output("pts_s", FRAMES, (), (), "float64"),
            Output("image", FRAMES, ("y", "x", "rgb"), (None, None, 3), "uint8", kept=False),
        )

"""The sound of a clip: 16 kHz mono."""

from fractions import Fraction

from extract.stage import Output, SourceStage, StageConfig
from extract.timeline import Regular

WAVE_HZ = 16_000
SAMPLES = Regular(hop_s=Fraction(1, WAVE_HZ), window_s=Fraction(1, WAVE_HZ))


class WaveConfig(StageConfig):
    """Nothing to choose: every model here hears 16 kHz mono."""


class Wave(SourceStage[WaveConfig]):
    """Samples in [-1, 1] from the audio's own start, gaps filled with silence; filled by the runner.

    They come as a Tensor [n]; those of more than five minutes as ``SamplesOnDisk``, which is read slice by slice. With
    them comes ``wave.start_s``: the time of the first one on the clip's clock, a float.
    """

    name = "wave"
    version = 1
    config_type = WaveConfig
    reads = "sound"
    parts = ("sound", "choice.span")

    @property
    def outputs(self) -> tuple[Output, ...]:
        return (Output("samples", SAMPLES, (), (), "float32", kept=False),)

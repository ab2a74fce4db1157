"""The section ``extract: adapt:``: settings of each stage that can be adapted."""

from pydantic import BaseModel, ConfigDict

from extract.adapt.hubert_config import HubertAdaptConfig


class AdaptConfig(BaseModel):
    """By stage."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hubert: HubertAdaptConfig = HubertAdaptConfig()

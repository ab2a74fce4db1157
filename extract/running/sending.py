"""What a run would send to paid or remote services: said by ``extract plan``, before anything is sent."""

from dataclasses import dataclass, field

import torch

from extract.answers import Answers
from extract.config import RunConfig
from extract.errors import ClipError, StoreError
from extract.inputs.manifest import Clip
from extract.running.clip_inputs import ClipInputs
from extract.running.device import LocalEngine
from extract.running.order import Order
from extract.running.planning import ClipPlan, Plan
from extract.running.reading import Reading
from extract.stage import Context
from extract.store import Store
from extract.weights.files import cache_folder


@dataclass
class Sending:
    """What one instance would send, clip by clip, in seconds."""

    price_per_minute: float | None = None
    price_setting: str = ""
    """Which setting says it; may contain ``{instance}``."""
    heard: dict[str, float] = field(default_factory=dict)
    """As billed: what was heard to be speech and has no kept answer, each request rounded up."""
    guessed: dict[str, float] = field(default_factory=dict)
    """Of clips whose sound cannot be read here: the whole length that the manifest gives them."""
    unknown: list[str] = field(default_factory=list)
    """Clips whose sound cannot be read here and whose length the manifest does not give."""

    @property
    def minutes(self) -> float:
        """To be sent, of all clips with a known or guessed length."""
        return (sum(self.heard.values()) + sum(self.guessed.values())) / 60

    @property
    def cost(self) -> float | None:
        """In the currency of the configured price; None where no price is configured."""
        return None if self.price_per_minute is None else self.minutes * self.price_per_minute

    def seconds_of(self, clip: str) -> float | None:
        """Of one clip; None where nobody knows."""
        return self.heard.get(clip, self.guessed.get(clip))


def sendings(plan: Plan, store: Store | None) -> dict[str, Sending]:
    """Instance -> what it would send. Reads the sound of the clips concerned; needs no network and no credentials."""
    found: dict[str, Sending] = {}
    clips = {clip.id: clip for clip in plan.clips}
    for clip_id, task in [*plan.todo(), *plan.stale()]:
        if not plan.graph[task.name].stage.external:
            continue
        clip = clips[clip_id]
        own = plan.of(clip)
        stage = own.prepared[task.name].instance.stage
        if stage.external:  # the clip does not bring it along
            sending = found.setdefault(task.name, Sending(stage.price_per_minute, stage.price_setting))
            _add(sending, plan, own, clip, task.name, store)
    return found


def _add(sending: Sending, plan: Plan, own: ClipPlan, clip: Clip, name: str, store: Store | None) -> None:
    cpu = torch.device("cpu")
    brought = ClipInputs(clip, Order(own), store, LocalEngine(cpu), plan.new_sources(), RunConfig())
    try:
        inputs = brought.of_clip_stage(own.prepared[name], Reading(RunConfig().stall_s))
    except (ClipError, StoreError):  # the run will say why, and may still find the sound
        if clip.end_s is None:
            sending.unknown.append(clip.id)
        else:
            sending.guessed[clip.id] = clip.end_s - (clip.start_s or 0)
        return
    if inputs is not None:
        context = Context(cpu, torch.float32, None, answers=Answers(cache_folder()), offline=True)
        sending.heard[clip.id] = own.prepared[name].instance.stage.seconds_to_send(inputs, context)

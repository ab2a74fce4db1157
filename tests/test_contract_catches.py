"""The contract itself, tested: stages that break one promise each are caught by the test of that promise."""

import time
from fractions import Fraction

import pytest
import torch

from extract.stage import VALID, ClipResult, ClipStage, Output, RowsStage, StageConfig
from extract.stages.hubert import HUBERT_STEPS
from extract.timeline import FRAMES
from tests.contract import ClipContract, ClipInputs, RowsContract


class GoodRows(RowsStage[StageConfig]):
    """A small network with dropout, as encoders are."""

    name = "rows"
    version = 1
    config_type = StageConfig
    inputs = ("crop.image",)

    @property
    def outputs(self):
        return (Output("feature", FRAMES, ("feature",), (5,), "float32"), VALID)

    def setup(self, context):
        del context
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Dropout(0.5)).eval()

    def compute(self, batch):
        with torch.inference_mode():
            return {"feature": self.model(batch["crop.image"])}


class RowsOfItsBatch(GoodRows):
    """Subtracts the batch's mean, as batch norm in training mode does."""

    def compute(self, batch):
        feature = super().compute(batch)["feature"]
        return {"feature": feature - feature.mean(dim=0)}


class RowsOfItsNeighbour(GoodRows):
    """Leaks the row before, but only in larger batches: equal where it stands first."""

    def compute(self, batch):
        feature = super().compute(batch)["feature"]
        return {"feature": feature + 0.01 * feature.roll(1, dims=0)}


class RowsInTraining(GoodRows):
    """Forgets eval()."""

    def setup(self, context):
        super().setup(context)
        self.model.train()


class RowsTooMany(GoodRows):
    def compute(self, batch):
        feature = super().compute(batch)["feature"]
        return {"feature": torch.cat([feature, feature[:1]])}


class RowsReordered(GoodRows):
    """Sorts by length and forgets to sort back."""

    def compute(self, batch):
        return {"feature": super().compute(batch)["feature"].flip(0)}


class RowsInPlace(GoodRows):
    def compute(self, batch):
        return super().compute({"crop.image": batch["crop.image"].mul_(0.5)})


class RowsOfAnotherType(GoodRows):
    def compute(self, batch):
        return {"feature": super().compute(batch)["feature"].double()}


class RowsOfAnotherWidth(GoodRows):
    def compute(self, batch):
        return {"feature": super().compute(batch)["feature"][:, :4]}


class RowsNotFinite(GoodRows):
    def compute(self, batch):
        return {"feature": super().compute(batch)["feature"] / 0}


class RowsUnnamed(GoodRows):
    def compute(self, batch):
        return {"features": super().compute(batch)["feature"]}


class RowsBlind(GoodRows):
    """Gives the same for every picture."""

    def compute(self, batch):
        return {"feature": torch.zeros(len(batch["crop.image"]), 5)}


class RowsDrifting(GoodRows):
    """Remembers what it saw."""

    seen = 0

    def compute(self, batch):
        self.seen += 1
        return {"feature": super().compute(batch)["feature"] + self.seen}


class RowsOnItself(GoodRows):
    """Keeps the batch on itself while it computes, as one thread may."""

    def compute(self, batch):
        self.batch_at_hand = batch
        time.sleep(0.02)
        return super().compute(self.batch_at_hand)


class ToyRows(RowsContract):
    wrong: type[GoodRows]

    def __init__(self, wrong):
        self.wrong = wrong

    def stage(self):
        return self.wrong(StageConfig())

    def row(self, seed):
        return {"crop.image": torch.rand(4, generator=torch.Generator().manual_seed(seed))}


class GoodClip(ClipStage[StageConfig]):
    """Steps of 20 ms, a network with dropout."""

    name = "clip"
    version = 1
    config_type = StageConfig
    inputs = ("wave.samples",)
    extra_steps = 0

    @property
    def outputs(self):
        return (
            Output("feature", HUBERT_STEPS, ("feature",), (3,), "float32"),
            Output("centre_s", HUBERT_STEPS, (), (), "float64"),
        )

    def setup(self, context):
        del context
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = torch.nn.Sequential(torch.nn.Linear(400, 3), torch.nn.Dropout(0.5)).eval()

    def compute(self, inputs):
        samples = inputs["wave.samples"]
        if len(samples) < 400:
            return ClipResult({}, empty="too_short")
        with torch.inference_mode():
            feature = self.model(samples.unfold(0, 400, 320))
        centres = torch.from_numpy(HUBERT_STEPS.centres_s(len(feature), inputs["wave.start_s"]))
        return ClipResult({"feature": feature, "centre_s": centres})


class ClipOfItsPast(GoodClip):
    """Normalises by a running level, as a streaming program does: depends on the clips before."""

    level = 0.0

    def compute(self, inputs):
        self.level += float(inputs["wave.samples"].abs().sum())
        found = super().compute(inputs)
        return ClipResult({name: values + (name == "feature") * self.level for name, values in found.arrays.items()})


class ClipInTraining(GoodClip):
    def setup(self, context):
        super().setup(context)
        self.model.train()


class ClipOfFiftySteps(GoodClip):
    """One step for every started hop, as n // 320 counts: 50 in a second, where the model has 49."""

    def compute(self, inputs):
        padded = torch.nn.functional.pad(inputs["wave.samples"], (0, 80 + 320))
        return super().compute(dict(inputs) | {"wave.samples": padded})


class ClipReordered(GoodClip):
    def compute(self, inputs):
        return ClipResult({name: values.flip(0) for name, values in super().compute(inputs).arrays.items()})


class ClipOnItsOwnClock(GoodClip):
    """Forgets when the recording starts."""

    def compute(self, inputs):
        return super().compute(dict(inputs) | {"wave.start_s": 0.0})


class ClipInPlace(GoodClip):
    def compute(self, inputs):
        inputs["wave.samples"].sub_(inputs["wave.samples"].mean())
        return super().compute(inputs)


class ClipWithoutOne(GoodClip):
    def compute(self, inputs):
        found = super().compute(inputs)
        return ClipResult({name: values for name, values in found.arrays.items() if name != "centre_s"})


class ClipOnItself(GoodClip):
    """Keeps the clip on itself while it computes, as one thread may."""

    def compute(self, inputs):
        self.clip = inputs
        time.sleep(0.02)
        return super().compute(self.clip)


class ToyClips(ClipContract):
    def __init__(self, wrong):
        self.wrong = wrong

    def stage(self):
        return self.wrong(StageConfig())

    def clips(self):
        def clip(num_samples, seed, start_s=0.0):
            samples = torch.rand(num_samples, generator=torch.Generator().manual_seed(seed))
            inputs = {"wave.samples": samples, "wave.start_s": start_s}
            return ClipInputs(inputs, duration_s=Fraction(num_samples, 16_000), start_s=start_s)

        return [clip(16_000, 1), clip(8_000, 2, 2.43), clip(16_000, 3, 0.5)]


ROWS = [
    (RowsOfItsBatch, "a_row_does_not_depend_on_its_companions"),
    (RowsOfItsBatch, "a_row_does_not_depend_on_the_size_of_its_batch"),
    (RowsOfItsNeighbour, "a_row_does_not_depend_on_its_companions"),
    (RowsInTraining, "gives_the_same_values_twice"),
    (RowsInTraining, "a_row_does_not_depend_on_its_companions"),
    (RowsTooMany, "writes_what_it_declares"),
    (RowsReordered, "a_row_does_not_depend_on_the_size_of_its_batch"),
    (RowsInPlace, "leaves_its_inputs_alone"),
    (RowsOfAnotherType, "writes_what_it_declares"),
    (RowsOfAnotherWidth, "writes_what_it_declares"),
    (RowsNotFinite, "writes_what_it_declares"),
    (RowsUnnamed, "writes_what_it_declares"),
    (RowsBlind, "rows_differ"),
    (RowsDrifting, "gives_the_same_values_twice"),
    (RowsOnItself, "threads_may_compute_at_once"),
]
CLIPS = [
    (ClipOfItsPast, "a_clip_does_not_depend_on_the_clips_before_it"),
    (ClipInTraining, "a_clip_does_not_depend_on_the_clips_before_it"),
    (ClipOfFiftySteps, "writes_what_it_declares"),
    (ClipReordered, "steps_stand_on_their_clock"),
    (ClipOnItsOwnClock, "steps_stand_on_their_clock"),
    (ClipInPlace, "leaves_its_inputs_alone"),
    (ClipWithoutOne, "writes_what_it_declares"),
    (ClipOnItself, "threads_may_compute_at_once"),
]


def promises(contract):
    """Tests that a stage outside the registry can keep."""
    return [name for name in dir(contract) if name.startswith("test_") and name != "test_is_registered_under_its_name"]


@pytest.mark.parametrize(("toy", "good"), [(ToyRows, GoodRows), (ToyClips, GoodClip)])
def test_a_stage_that_keeps_its_promises_passes(toy, good):
    contract = toy(good)
    assert len(promises(contract)) >= 5
    for name in promises(contract):
        getattr(contract, name)()


@pytest.mark.parametrize(
    ("toy", "wrong", "promise"), [(ToyRows, *case) for case in ROWS] + [(ToyClips, *c) for c in CLIPS]
)
def test_a_broken_promise_is_caught(toy, wrong, promise):
    with torch.random.fork_rng():
        torch.manual_seed(0)  # two masks of a dropout may be equal by chance
        with pytest.raises(AssertionError):
            getattr(toy(wrong), f"test_{promise}")()


@pytest.mark.parametrize(("toy", "cases"), [(ToyRows, ROWS), (ToyClips, CLIPS)])
def test_every_promise_can_be_broken(toy, cases):
    """A promise that no wrong stage breaks would be a test that cannot fail."""
    broken = {f"test_{promise}" for _, promise in cases}
    trivial = {"test_declarations_are_consistent", "test_clips_differ"}
    assert set(promises(toy(cases[0][0]))) - broken == trivial & set(promises(toy(cases[0][0])))


def test_a_stage_outside_the_registry_is_caught():
    with pytest.raises(KeyError, match="rows"):
        ToyRows(GoodRows).test_is_registered_under_its_name()

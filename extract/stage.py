"""What a stage is: declared inputs, outputs and config, and a pure function of them.

A stage opens no file, knows no store, no engine and no batch policy. The runner orders, batches, resumes and writes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from extract.au import AUS
from extract.errors import WeightsError
from extract.timeline import FRAMES, Clock

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from extract.answers import Answers
    from extract.weights.files import Weights


class StageConfig(BaseModel):
    """Base of every stage's config: frozen, unknown keys refused. Its fields are part of the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    added: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after stores were made without them: no part of the recipe while they hold their default, so
    that those stores stay up to date."""

    def of_recipe(self) -> dict[str, Any]:
        """The fields as JSON values, without those of ``added`` at their default."""
        fields = type(self).model_fields
        usual = {name for name in self.added if getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude=usual)


ConfigT = TypeVar("ConfigT", bound=StageConfig)


@dataclass(frozen=True)
class Output:
    """One array of an instance."""

    name: str
    clock: Clock
    dims: tuple[str, ...]
    """Names of the axes after the first; they become Zarr dimension names."""
    sizes: tuple[int | None, ...]
    """Sizes of the axes after the first. ``None`` (transient outputs only): rows differ, and arrive as a list."""
    dtype: str
    """NumPy name: ``float16``, ``int8``, ``uint8``, ``bool``, ``str`` ..."""
    kept: bool = True
    """Kept in the store by default. A transient output flows through memory; the config's ``keep`` may store it."""
    compress: bool = False
    """zstd before the checksum: for arrays that are mostly zeros (features compress 1.3 times at best)."""


VALID = Output("valid", FRAMES, (), (), "bool")
"""Which rows hold values; every stage on the frame clock that can lack a row declares it."""


@dataclass(frozen=True)
class Context:
    """What a stage gets once per process, before its first batch."""

    device: "torch.device"
    precision: "torch.dtype"
    """Number type of the model's arithmetic (float32 on a CPU); already part of the recipe."""
    weights: "Weights | None"
    """What the config's ``weights`` names, resolved and hashed; ``None`` for a stage without weights."""
    compile: bool = False
    """Compile the network's repeated blocks and, on a GPU, replay it as a CUDA graph. Speed only: in no recipe."""
    batch: int = 0
    """Rows of the largest micro-batch that will come; what is compiled takes this many, smaller ones are filled up.
    0: unknown, which does not go with ``compile``."""
    answers: "Answers | None" = None
    """Of an ``external`` stage: what services answered before, in any store."""
    offline: bool = False
    """Nothing may be sent."""

    def __post_init__(self) -> None:
        if self.compile and self.batch < 1:
            raise ValueError(f"compile is on, but batch is {self.batch}; expected the rows of the largest micro-batch")


class Stage(ABC, Generic[ConfigT]):
    """One node of the pipeline. Subclass RowsStage, ClipStage or SourceStage.

    ``setup`` comes first and once; ``compute`` is re-entrant: several threads may call it at once, so it leaves nothing
    behind on ``self``.
    """

    name: ClassVar[str]
    """A noun for what it makes; file, class and test agree."""
    version: ClassVar[int]
    """Raised by hand when the code changes values; part of the recipe."""
    config_type: ClassVar[type[StageConfig]]
    inputs: tuple[str, ...] = ()
    """``slot.array`` each, by the config, if need be. The slot is the instance of that name unless the config's
    ``inputs`` names another."""
    parts: tuple[str, ...] = ()
    """Source parts of the clip read directly: ``media``, ``labels``, ``choice.face`` ...; by the config, if need be."""
    device: Literal["cpu", "gpu"] = "cpu"
    follows_device: ClassVar[bool] = False
    """Computes on the run's device, where the frames are, in its own number types: no precision in its recipe."""
    batch: ClassVar[int] = 32
    """Default rows per micro-batch; the config's ``batch`` changes speed only."""
    device_batch: ClassVar[int | None] = None
    """The same on a GPU, where more rows keep it busy; None: as on the CPU."""
    host_inputs: ClassVar[frozenset[str]] = frozenset()
    """Inputs that a stage on a GPU wants in the CPU's memory all the same: a few numbers per row, that it reads."""
    clock: ClassVar[bool] = False
    """Gives ``pts_s``, the times of the clip's frames, which all arrays on the frame clock share."""
    provided_by: str | None = None
    """Source part that a clip may bring along instead of having this computed: ``crops``, ``transcript``."""
    stand_in: "type[Stage[Any]] | None" = None
    """Reads ``provided_by`` in this stage's place, with the same config; None: the stage reads the part itself."""
    sourced: bool = False
    """Clips that it computes and clips that bring its arrays share one recipe, in which nothing of the computing is:
    ``made_with``, weights, precision and inputs are part of the source of those that it computes. So what comes along
    needs neither weights nor inputs."""
    external: bool = False
    """Calls a paid or remote service: the context brings kept ``answers``, and ``extract plan`` says what a run would
    send (``seconds_to_send``)."""
    reread: ClassVar[frozenset[str]] = frozenset()
    """Source parts whose change is no reason to ask: the instance is computed anew. For imports that feed nothing."""
    weightless: ClassVar[frozenset[str]] = frozenset()
    """Values of the config's ``weights`` that name a rule: nothing was learned and no file is needed."""

    def __init__(self, config: ConfigT) -> None:
        self.config = config
        self.levers: dict[str, Any] = {}
        """After ``setup``: what makes it fast here, for the provenance; JSON values. In no recipe: the values are the
        same but for rounding. A stage without a network has none."""

    @property
    @abstractmethod
    def outputs(self) -> tuple[Output, ...]:
        """The arrays it gives; sizes and types may depend on the config."""

    @property
    def aus(self) -> tuple[int, ...]:
        """Numbers of the action units that it wants of the clip's label files, in the order of its columns."""
        return AUS

    @property
    def weights(self) -> str | None:
        """What the config's ``weights`` names; None for a stage without, or where it names a rule (``weightless``)."""
        named: str | None = getattr(self.config, "weights", None)
        return None if named in self.weightless else named

    @property
    def architecture(self) -> str | None:
        """What the config says; None for a stage with one architecture."""
        named: str | None = getattr(self.config, "architecture", None)
        return named

    @property
    def without(self) -> str:
        """How to do without the weights of a ``sourced`` stage, for the message that they are missing; may contain
        ``{instance}``."""
        raise NotImplementedError(f"stage {self.name} is sourced, but does not say how to do without it")

    def made_with(self) -> dict[str, Any]:
        """Settings of a ``sourced`` stage that decide values, as JSON values."""
        raise NotImplementedError(f"stage {self.name} does not say what it computes with")

    @property
    def price_per_minute(self) -> float | None:
        """Of an ``external`` stage, where the config names it."""
        return None

    @property
    def price_setting(self) -> str:
        """Which setting of an ``external`` stage names it, ``{instance}.price``."""
        raise NotImplementedError(f"stage {self.name} costs nothing")

    def seconds_to_send(self, inputs: Mapping[str, Any], context: Context) -> int:
        """Of an ``external`` stage: seconds that computing ``inputs`` would send, as they are billed."""
        raise NotImplementedError(f"stage {self.name} sends nothing")

    def random_weights(self) -> "dict[str, np.ndarray[Any, Any]]":
        """Tensors by name for ``weights: random``, drawn by ``models/random.py``; untrained, for tests and demo."""
        raise WeightsError(f"stage {self.name} has no random weights; name a key, a file or a folder")

    def setup(self, context: Context) -> None:
        """Load weights. Called once per process, before the first batch."""
        del context  # a stage without weights needs nothing


class SourceStage(Stage[ConfigT]):
    """Where a clip enters: the runner reads its outputs out of the clip's files."""

    reads: ClassVar[Literal["video", "crops", "sound"]]
    """What it is filled from. ``video``: its config has ``repair_pts``. ``sound``: its one output is on a regular clock
    of one step per sample, and whoever is fed gets ``slot.start_s`` as well."""

    def arrays(self, images: "list[Tensor]") -> "dict[str, Tensor | list[Tensor]]":
        """Output name -> rows, of decoded pictures (uint8 RGB [H, W, 3] each); times are the runner's."""
        return {"image": images}


RowsBatch = Mapping[str, Any]
"""``slot.array`` -> B rows on the stage's device: one Tensor where the declared sizes are fixed, whoever gives them;
a list of Tensors where a size is None."""


class RowsStage(Stage[ConfigT]):
    """One row in, one row out, on the frame clock. Rows whose inputs are invalid never arrive."""

    empty_reason: ClassVar[str | None] = None
    """What it means when this stage finds every row wanting (detections: ``no_face``)."""
    row_by_row: ClassVar[bool] = False
    """Computes each row by itself: a row's bits are the same in a micro-batch of any size. Its micro-batches may then
    be cut where the memory for decoded frames is full; those of other stages are cut at fixed row numbers alone."""

    @abstractmethod
    def compute(self, batch: RowsBatch) -> "dict[str, Tensor | list[Tensor]]":
        """Output name -> B rows. A row's values depend on that row alone.

        A stage that declares ``valid`` may return it (bool [B]); rows it marks False are stored as zeros. Returned
        without, all B rows are valid.
        """


@dataclass(frozen=True)
class ClipResult:
    """What a clip stage gives for one clip."""

    arrays: "Mapping[str, Tensor | list[str]]"
    """Output name -> rows; every declared output, or none at all with ``empty``. Words are a list of str."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the record that are no error: JSON values."""
    empty: str | None = None
    """A key of errors.EMPTY_REASONS when there is nothing here."""


class ClipStage(Stage[ConfigT]):
    """One clip's whole input in, arrays on any clock out. Its block is the clip."""

    @abstractmethod
    def compute(self, inputs: Mapping[str, Any]) -> ClipResult:
        """``inputs``: ``slot.array`` -> Tensor, or a float for a scalar (``wave.start_s``); source parts by name."""

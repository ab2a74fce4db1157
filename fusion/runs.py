"""A run: the folder that ``fusion fit`` writes, and how it is read back.

::

    runs/NAME/config.yaml      the section ``fusion:`` that was used; ``-c runs/NAME/config.yaml`` repeats the fit
              checkpoint.pt    the state of training, to continue after an interruption
              model.pt         the network of the best epoch and the recipes of its features, to evaluate and predict
              log.jsonl        one line per epoch; log.csv the same as a table; events/ for TensorBoard
              epochs/NN/       the network of each epoch, with ``training.keep_epochs``
              scores/          outputs for every frame of the splits val and test (``fusion.scores``)
              postprocess.json smoothing, thresholds and what else is applied to the outputs
              metrics.json     the result; written last, so a run that has it is finished

Every file is replaced by a rename: a crash leaves the previous version.
"""

import csv
import io
import itertools
import json
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from extract import texts
from extract.archives import too_large
from extract.au import AUS
from extract.config import validated
from extract.errors import ConfigError, CorruptError, StoreError, UsageError
from extract.files import LocalFiles
from extract.names import nearest, suggestion
from fusion import earlier_runs
from fusion.config import FusionConfig
from fusion.model import FusionModel
from fusion.postprocess import FILE as POSTPROCESS
from fusion.postprocess import PostProcess
from fusion.scores import FrameScores
from fusion.tasks import Task, num_outputs, tasks_of

RUNS = Path("runs")
CONFIG, CHECKPOINT, MODEL, LOG, METRICS = "config.yaml", "checkpoint.pt", "model.pt", "log.jsonl", "metrics.json"
LOG_TABLE, SCORES, EVENTS, EPOCHS = "log.csv", "scores", "events", "epochs"
SCHEMA = 2


@dataclass(frozen=True)
class FittedModel:
    """What ``model.pt`` holds: a network and a description of its inputs."""

    model: FusionModel
    config: FusionConfig
    sizes: Mapping[str, int]
    """Modality -> features per row."""
    recipes: Mapping[str, Mapping[str, Any]]
    """Instance -> recipe of its features."""
    clips: Mapping[str, tuple[str, ...]]
    """Split (``train``, ``val``) -> the clips that were used in fitting."""
    epoch: int
    """Number of epochs that it was trained for."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """sha256 of an encoder's weights -> what the extraction's config called them: a key, a path, ``random``."""
    untrained: tuple[str, ...] = ()
    """Instances whose encoder has random weights."""
    drawn: int = 0
    """Number of those clips whose pictures were drawn by a program."""
    aus: tuple[int, ...] = AUS
    """Numbers of the action units, in the order of the outputs."""
    crops: Mapping[str, str] = field(default_factory=dict)
    """Instance made from face crops -> kind of its clips' crops (fusion/crop_kinds.py); empty in runs made before."""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it predicts."""
        return tasks_of(self.config, self.aus)


class Run:
    """One folder under ``runs/``."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._files = LocalFiles(self.path)

    @classmethod
    def new(cls, root: Path = RUNS) -> "Run":
        """A run named after the date and time, for a fit that was given no name."""
        name = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
        names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
        return cls(next(root / free for free in names if not (root / free).exists()))

    @classmethod
    def newest(cls, root: Path = RUNS) -> "Run":
        """The run in ``root`` whose model was written last.

        Raises:
            UsageError: there is none.
        """
        models = sorted(root.glob(f"*/{MODEL}"), key=lambda path: path.stat().st_mtime_ns)
        if not models:
            raise UsageError(f"no fitted model in {root}/; make one with `fusion fit`, or name a run with --run")
        return cls(models[-1].parent)

    @property
    def finished(self) -> bool:
        return (self.path / METRICS).is_file()

    @property
    def started(self) -> bool:
        return (self.path / CONFIG).is_file()

    def check_ours(self) -> None:
        """Refuse a path that holds something else.

        Raises:
            UsageError: the path is a file, or a folder with other content.
        """
        if self.path.exists() and not self.started and (not self.path.is_dir() or any(self.path.iterdir())):
            raise UsageError(f"{self.path}: holds something else (no {CONFIG}); name another folder with -o")

    # ---- config and plain files --------------------------------------------------------------------------------

    def begin(self, config: FusionConfig) -> None:
        """Create the folder and write its config.

        Raises:
            UsageError: another process created it first.
        """
        text = yaml.safe_dump({"fusion": config.model_dump(mode="json")}, sort_keys=False)
        if not self._files.create(CONFIG, text.encode()):
            raise UsageError(f"run {self.path} was just begun by another process; name another with -o")

    def config(self) -> FusionConfig:
        """The config that the run began with.

        Raises:
            ConfigError: the file was edited and is not valid.
        """
        where = f"{self.path / CONFIG}"
        try:
            whole = texts.load_yaml(texts.read_text(self.path / CONFIG))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"{where}: cannot be read ({error}); every run needs it: fit again") from None
        if not isinstance(whole, dict) or "fusion" not in whole:
            raise ConfigError(f"{where}: has no section fusion; every run needs it: fit again")
        return validated(FusionConfig, whole["fusion"], where)

    def save_log(self, history: list[dict[str, Any]]) -> None:
        """Write one line per epoch, as JSON and as CSV. A file is replaced whole: a resumed run may repeat an epoch."""
        self._files.write(LOG, "".join(json.dumps(epoch) + "\n" for epoch in history).encode())
        table = io.StringIO()
        writer = csv.DictWriter(table, list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        self._files.write(LOG_TABLE, table.getvalue().encode())

    def save_scores(self, split: str, scores: FrameScores) -> None:
        """Write the outputs for every frame of a split."""
        self._files.write(f"{SCORES}/{split}.npz", scores.as_bytes())

    def save_postprocess(self, post: PostProcess) -> None:
        """Write what is applied to the outputs."""
        self._files.write(POSTPROCESS, (json.dumps(post.as_json(), indent=1) + "\n").encode())

    def postprocess(self, aus: Sequence[int]) -> PostProcess | None:
        """What is applied to the outputs for ``aus``; None if the run has none.

        Raises:
            UsageError: the file is for other AUs.
            CorruptError: the file is damaged.
        """
        path = self.path / POSTPROCESS
        return PostProcess.read(path, aus) if path.is_file() else None

    def scores(self, split: str) -> FrameScores | None:
        """The outputs for every frame of a split; None if they were not saved.

        Raises:
            CorruptError: the file is damaged.
        """
        path = self.path / SCORES / f"{split}.npz"
        return FrameScores.read(path) if path.is_file() else None

    def save_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Write the result, which marks the run as finished."""
        self._files.write(METRICS, (json.dumps(metrics, indent=1) + "\n").encode())

    # ---- tensors -----------------------------------------------------------------------------------------------

    def save_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Write the state of training."""
        self._save(CHECKPOINT, state)

    @property
    def has_checkpoint(self) -> bool:
        return (self.path / CHECKPOINT).is_file()

    def checkpoint(self) -> dict[str, Any] | None:
        """The state given to ``save_checkpoint``, with tensors on the CPU; None before the end of the first epoch."""
        return self._load(CHECKPOINT) if self.has_checkpoint else None

    def save_epoch(self, fitted: FittedModel) -> None:
        """Keep the network of an epoch in a folder of its own, which is read like a run."""
        kept = Run(self.path / EPOCHS / f"{fitted.epoch:02d}")
        if not kept.started:
            kept.begin(fitted.config)
        kept.save_model(fitted)

    def save_model(self, fitted: FittedModel) -> None:
        """Write the network of the best epoch so far."""
        self._save(
            MODEL,
            {
                "config": fitted.config.model_dump_json(),
                "sizes": dict(fitted.sizes),
                "recipes": json.dumps(fitted.recipes),
                "clips": {split: list(clips) for split, clips in fitted.clips.items()},
                "epoch": fitted.epoch,
                "weights": dict(fitted.weights),
                "untrained": list(fitted.untrained),
                "drawn": fitted.drawn,
                "aus": list(fitted.aus),
                "crops": dict(fitted.crops),
                "model": fitted.model.state_dict(),
            },
        )

    def model(self) -> FittedModel:
        """The best network so far, in eval mode, on the CPU.

        Raises:
            UsageError: there is no such run, or its first epoch is not over.
            CorruptError: the file is damaged.
            StoreError: another version of this program wrote it.
        """
        if not (self.path / MODEL).is_file():
            raise UsageError(f"run {self.path}: {self._what_is_missing()}")
        state = self._load(MODEL)
        config = FusionConfig.model_validate_json(state["config"])
        aus = tuple(state.get("aus", AUS))
        model = FusionModel(state["sizes"], config, num_outputs(tasks_of(config, aus)))
        model.load_state_dict(state["model"])
        return FittedModel(
            model=model.eval(),
            config=config,
            sizes=state["sizes"],
            recipes=json.loads(state["recipes"]),
            clips={split: tuple(clips) for split, clips in state["clips"].items()},
            epoch=state["epoch"],
            weights=state["weights"],
            untrained=tuple(state["untrained"]),
            drawn=state["drawn"],
            aus=aus,
            crops=state.get("crops", {}),
        )

    def _what_is_missing(self) -> str:
        if self.path.exists():
            return f"it has no {MODEL} yet; `fusion fit -o {self.path}` makes it"
        models = sorted(path for root in {RUNS, self.path.parent} for path in root.glob(f"*/{MODEL}"))
        if not models:
            return f"no such folder; `fusion fit -o {self.path}` makes it"
        runs = {path.parent.name: str(path.parent) for path in models}
        # By the folder's own name: two paths below one long path are alike whatever their ends.
        near = nearest(self.path.name, list(runs))
        return f"no such folder; {suggestion(runs[near] if near else '', list(runs.values()))}"

    def _save(self, name: str, state: Mapping[str, Any]) -> None:
        buffer = io.BytesIO()
        torch.save({"schema": SCHEMA, **state}, buffer)
        self._files.write(name, buffer.getbuffer())

    def _load(self, name: str) -> dict[str, Any]:
        path = self.path / name
        data = path.read_bytes()
        bomb = too_large(io.BytesIO(data), len(data))
        if bomb is not None:
            raise CorruptError(f"{path}: {bomb}: refused unread; do you trust the source of this run?")
        try:
            _check_sums(data)
            state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except (zipfile.BadZipFile, RuntimeError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            raise CorruptError(f"{path}: damaged ({reason}); remove the folder and fit again") from error
        if state.get("schema") == 1 and name == MODEL:
            return earlier_runs.model_of(state)
        if state.get("schema") == 1:
            raise StoreError(f"{path}: an earlier version began this fit; fit again, with another folder for -o")
        if state.get("schema") != SCHEMA:
            raise StoreError(f"{path}: schema {state.get('schema')}, this program knows {SCHEMA}")
        return state


def _check_sums(data: bytes) -> None:
    """Compare the checksums that torch.save writes; torch.load ignores them."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"bad checksum of {damaged}")

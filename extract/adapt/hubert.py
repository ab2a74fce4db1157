"""Adapt HuBERT to a manifest's own speech. Read it from top to bottom: clips, sound, targets, network, loop, result."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from extract.adapt import hubert_fairseq
from extract.adapt.folder import CHECKPOINT, Folder
from extract.adapt.hubert_batches import Recordings
from extract.adapt.hubert_config import FEATURE_GRADS, HEAD_SIZES, SPEED_ONLY, TARGET_LAYERS, HubertAdaptConfig
from extract.adapt.hubert_features import TargetSource
from extract.adapt.hubert_network import (
    HubertPretraining,
    PretrainingHead,
    head_of,
    load_encoder,
    new_mask_vector,
    recompute_layers,
)
from extract.adapt.hubert_result import HEAD, Facts, write_result
from extract.adapt.hubert_sound import SOUND, Heard, Recording, chosen, hear, refuse_too_little, refuse_twins
from extract.adapt.hubert_targets import make_labels, read_labels
from extract.adapt.hubert_training import (
    BEST,
    Data,
    Progress,
    State,
    Tell,
    make_optimizer,
    plain_state,
    restore,
    train,
)
from extract.adapt.processes import Processes
from extract.config import ExtractConfig, load_extract_config, validated
from extract.errors import WeightsError
from extract.inputs.manifest import Clip, load_manifest, refuse_shared
from extract.models import hubert as networks
from extract.stages.hubert import Hubert, HubertConfig
from extract.weights.files import Weights, read_tensors
from extract.weights.lock import lock_file
from extract.weights.resolving import resolve

logger = logging.getLogger("extract")

STAGE = "hubert"


@dataclass(frozen=True)
class Adapted:
    """What came of an adaptation."""

    folder: Path
    """``best`` and ``last`` in it are what ``weights:`` takes."""
    metrics: Mapping[str, Any]
    """As ``metrics.json`` has them."""
    failures: Mapping[str, str]
    """Training or val clips that could not be read -> why. They were left out."""

    @property
    def exit_code(self) -> int:
        """1 if a clip failed, else 0."""
        return 1 if self.failures else 0

    @property
    def best(self) -> Path:
        return self.folder / "best"


def adapt_hubert(
    manifest: str | Path | Sequence[Clip],
    output: str | Path,
    config: str | ExtractConfig | None = None,
    *,
    set: Sequence[str] = (),
    weights: str | None = None,
    architecture: str | None = None,
    transductive: bool = False,
    allow_shared_subjects: bool = False,
    device: str = "auto",
    offline: bool = False,
    tell: Tell | None = None,
) -> Adapted:
    """Continue HuBERT's self-supervised pre-training on the training clips of a manifest; labels are never read.

    The same clips, config, kind of device and number of threads give the same weights, whether interrupted or not:
    to the bit on a CPU.

    Args:
        manifest: its file, or the clips themselves.
        output: folder to write; an unfinished adaptation there is continued.
        config: a built-in config, a YAML file, or the settings themselves. None is ``default``.
        set: ``a.b=c`` each, over that config, as in ``adapt.hubert.lr=1e-5``.
        weights: what to begin with: a key, a path, ``random``, or a ``.pt`` of fairseq's pre-training. None: what the
            config's instance ``hubert`` says.
        architecture: of these weights; None: likewise.
        transductive: train on clips of val and test as well. The weights say so, and ``fusion`` refuses these clips.
        allow_shared_subjects: accept one subject in a training split and another one.
        device: ``auto``, ``cpu`` or ``cuda:N``.
        offline: the user forbids the network.
        tell: is told where the adaptation is, several times a second at most.

    Raises:
        UsageError: no clip to train on, or a recording in a training split and another one; too little sound; the
            loss diverged; the folder holds something else.
        WeightsError: the weights are not there, or of another architecture.
        StaleError: the folder was begun with something else.
        MachineError: the disk gave up.
    """
    tell = tell or (lambda _: None)
    folder, processes = Folder(output), Processes.started(device)
    folder.check_ours()
    processes.wait()
    if processes.device.type == "cuda":  # float32 means float32: TF32 keeps 10 bits of the fraction
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    settings = config if isinstance(config, ExtractConfig) else load_extract_config(config, set)
    own = settings.adapt.hubert
    stage = _stage(settings, weights, architecture)
    lock = lock_file(config if isinstance(config, str) else None, None)

    # Clips.
    clips = list(load_manifest(Path(manifest))) if isinstance(manifest, str | Path) else list(manifest)
    training, looked_at = chosen(clips, own.splits, transductive=transductive)
    if not (transductive or allow_shared_subjects):
        refuse_shared(clips, Path(manifest) if isinstance(manifest, str | Path) else None)

    # Weights, before anything takes long.
    base, kept_head = _base(stage, own, lock, offline=offline)
    source = _target_source(stage, own, base, lock, offline=offline)
    if processes.is_first:
        folder.begin(_begun(stage, own, base, source, [*training, *looked_at], transductive, processes))
        folder.sweep()
    processes.wait()

    # Sound.
    heard = _hear([*training, *looked_at], folder, processes, tell)
    of_training, of_val = heard[: len(training)], heard[len(training) :]
    failures = {one.clip: one.failed for one in heard if one.failed}
    if processes.is_first:
        for one in heard:
            if not one.usable:
                logger.warning("clip %s is left out: %s", one.clip, one.failed or one.left_out)
    if not transductive:
        refuse_twins(of_training, [clip for clip in clips if clip.split is not None and clip not in training])
    usable = refuse_too_little(of_training, own.least_s, own.targets.clusters)
    usable_val = [one for one in of_val if one.usable]

    # Targets.
    given = Path(own.targets.quantiser) if own.targets.quantiser else None
    make_labels(
        folder, usable, usable_val, source, own.targets.clusters, own.targets.frames, own.targets.seed, given,
        processes, lambda doing: tell(Progress(doing)),
    )  # fmt: skip
    data = _data(folder, usable, usable_val, own, source.label_hz, normalise=stage.config.normalise)

    # Network.
    network = _network(stage, own, base, kept_head, processes.device)
    if own.recompute:
        recompute_layers(network.encoder)
    optimizer = make_optimizer(network, own)
    state = restore(folder, network, optimizer, processes.device)

    # Loop.
    train(folder, network, optimizer, data, own, processes, state, tell)

    # Result.
    if processes.is_first:
        number, threads = processes.number, torch.get_num_threads()
        of = f"{number} process{'es' if number > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"
        where = f"{processes.device.type}, {of}"
        facts = Facts(
            stage.config.architecture, stage.config.normalise, base, source, own,
            of_training, usable_val, transductive or _was_transductive(base), where,
        )  # fmt: skip
        _finish(folder, network, state, facts, data)
    processes.wait()
    metrics = folder.read_json("metrics.json") or {}
    return Adapted(folder.path, metrics, failures)


def _stage(settings: ExtractConfig, weights: str | None, architecture: str | None) -> Hubert:
    """The stage whose weights are adapted: as the config's instance of its name says, unless told otherwise."""
    instance = settings.instances.get(STAGE)
    fields = {} if instance is None else instance.stage_fields
    asked = {"weights": weights, "architecture": architecture}
    fields |= {name: value for name, value in asked.items() if value is not None}
    fields.pop("layer", None)  # which one is stored; all of them are trained
    if fields.get("architecture") == "base" and "normalise" not in fields:
        fields["normalise"] = False
    return Hubert(validated(HubertConfig, fields, f"instance {STAGE}"))


def _base(
    stage: Hubert, config: HubertAdaptConfig, lock: Path, *, offline: bool
) -> "tuple[Weights, tuple[Mapping[str, torch.Tensor], int, str] | None]":
    """The weights to begin with; and with ``head: kept`` its tensors, the class of cluster 0, and where they lie."""
    spec = stage.config.weights
    path = Path(os.path.expanduser(spec))
    if hubert_fairseq.is_fairseq(path):
        base, tensors = hubert_fairseq.read(path, spec)
        return base, (tensors, hubert_fairseq.OFFSET, spec) if config.head == "kept" else None
    base = resolve(spec, stage, offline=offline, lock=lock)
    if config.head == "new":
        return base, None
    file = None if base.path is None else base.path / HEAD
    if file is None or not file.is_file():
        raise WeightsError(
            f"weights {spec!r} have no head ({HEAD}); only folders that `extract adapt` made and fairseq's own "
            "checkpoints (.pt) have one: --set adapt.hubert.head=new makes one"
        )
    found = read_tensors(file)
    return base, (found, len(found["table"]) - config.targets.clusters if "table" in found else 0, str(file))


def _target_source(
    stage: Hubert, config: HubertAdaptConfig, base: Weights, lock: Path, *, offline: bool
) -> TargetSource:
    """The network whose features are clustered."""
    untrained = base.untrained and config.targets.weights is None
    if config.targets.features == "mfcc" or (config.targets.features == "auto" and untrained):
        return TargetSource()
    targets, architecture = config.targets, config.targets.architecture or stage.config.architecture
    layer = targets.layer or TARGET_LAYERS[architecture]
    most = networks.ARCHITECTURES[architecture].num_layers
    if layer > most:
        raise WeightsError(
            f"adapt.hubert.targets.layer is {layer}, but architecture {architecture} has layers 1 to {most}"
        )
    if targets.weights is None:
        if architecture != stage.config.architecture:
            raise WeightsError("adapt.hubert.targets.architecture goes with targets.weights, which is not given")
        return TargetSource(base, architecture, layer, stage.config.normalise)
    normalise = architecture != "base" if targets.normalise is None else targets.normalise
    fields = {"weights": targets.weights, "architecture": architecture, "normalise": normalise}
    other = Hubert(validated(HubertConfig, fields, "adapt.hubert.targets"))
    path = Path(os.path.expanduser(targets.weights))
    if hubert_fairseq.is_fairseq(path):
        return TargetSource(hubert_fairseq.read(path, targets.weights)[0], architecture, layer, normalise)
    return TargetSource(resolve(targets.weights, other, offline=offline, lock=lock), architecture, layer, normalise)


def _begun(
    stage: Hubert,
    config: HubertAdaptConfig,
    base: Weights,
    targets: TargetSource,
    clips: Sequence[Clip],
    transductive: bool,
    processes: Processes,
) -> dict[str, Any]:
    """What decides the values; the clips' files are known by their hashes besides."""

    def of_clip(clip: Clip) -> dict[str, Any]:
        names = {part: path.name for part, path in (("video", clip.video), ("audio", clip.audio)) if path is not None}
        return {"split": clip.split, "start_s": clip.start_s, "end_s": clip.end_s, **names}

    return {
        "stage": STAGE,
        "config": config.model_dump(mode="json", exclude=set(SPEED_ONLY)),
        "architecture": stage.config.architecture,
        "normalise": stage.config.normalise,
        "weights": base.sha256,
        "targets": targets.as_json(),
        "transductive": transductive,
        "device": processes.device.type,
        "clips": {clip.id: of_clip(clip) for clip in clips},
    }


def _hear(clips: Sequence[Clip], folder: Folder, processes: Processes, tell: Tell) -> list[Heard]:
    own = processes.own(clips)
    for number, clip in enumerate(own, start=1):
        tell(Progress(f"sound: {number} of {len(own)} clips"))
        hear(clip, folder)
    processes.wait()
    return [hear(clip, folder) for clip in clips]


def _data(
    folder: Folder,
    training: Sequence[Heard],
    val: Sequence[Heard],
    config: HubertAdaptConfig,
    label_hz: int,
    *,
    normalise: bool,
) -> Data:
    def of(heard: Sequence[Heard]) -> Recordings:
        sound = [Recording(folder, one, normalise=normalise) for one in heard]
        return Recordings(sound, [read_labels(folder, one.clip) for one in heard], label_hz)

    learned = of(training)
    counts = torch.bincount(
        torch.cat([torch.from_numpy(labels).long() for labels in learned.labels]), minlength=config.targets.clusters
    )
    return Data(learned, of(val), int(counts.argmax()))


def _network(
    stage: Hubert,
    config: HubertAdaptConfig,
    base: Weights,
    kept: "tuple[Mapping[str, torch.Tensor], int, str] | None",
    device: torch.device,
) -> HubertPretraining:
    architecture = stage.config.architecture
    encoder, mask_vector = load_encoder(architecture, base, device)
    if mask_vector is None:
        mask_vector = new_mask_vector(stage.width, config.seed)
    if kept is not None:
        tensors, offset, where = kept
        head = head_of(tensors, config.targets.clusters, offset, where)
    else:
        head = PretrainingHead(stage.width, config.head_size or HEAD_SIZES[architecture], [config.targets.clusters])
        head.draw(config.seed)
    feature_grad = FEATURE_GRADS.get(architecture, 1.0) if config.feature_grad is None else config.feature_grad
    return HubertPretraining(encoder, mask_vector, head, feature_grad).to(device)


def _was_transductive(base: Weights) -> bool:
    """Whether the weights to begin with had heard val or test of some manifest already."""
    said = base.read_json("adapted.json")
    return bool(said and said.get("transductive"))


def _finish(folder: Folder, network: HubertPretraining, state: State, facts: Facts, data: Data) -> None:
    """Make the folders ``best`` and ``last`` and the metrics, then remove what only training needs."""
    entries = {entry["step"]: entry for entry in state.history}
    best = torch.load(folder.path / BEST, map_location="cpu", weights_only=True)
    write_result(folder, "best", best, entries[state.best], facts)
    write_result(folder, "last", plain_state(network), state.history[-1], facts)
    folder.write_json(
        "metrics.json",
        {
            "best": entries[state.best],
            "last": state.history[-1],
            "training_s": sum(len(sound) for sound in data.train.sound) / 16_000,
            "clips": {"train": len(data.train.sound), "val": len(data.val.sound)},
            "transductive": facts.transductive,
            "weights": facts.base.spec,
            "computed_on": facts.device,
        },
    )
    folder.remove(SOUND, CHECKPOINT, BEST)

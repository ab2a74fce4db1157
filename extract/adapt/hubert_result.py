"""What an adaptation leaves: a Hugging Face folder with model card, head, clusters and the list of what it heard."""

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extract.adapt.folder import Folder
from extract.adapt.hubert_config import HubertAdaptConfig
from extract.adapt.hubert_crops import HZ
from extract.adapt.hubert_features import TargetSource
from extract.adapt.hubert_network import MASK_VECTOR
from extract.adapt.hubert_sound import Heard
from extract.adapt.hubert_targets import QUANTISER
from extract.files import TEMPORARY
from extract.models import hubert
from extract.weights.files import ADAPTED, Weights

if TYPE_CHECKING:
    from torch import Tensor

TENSORS, HEAD = "model.safetensors", "head.safetensors"
LISTED = 40
"""Source files that the model card lists; ``adapted.json`` has all."""


@dataclass(frozen=True)
class Facts:
    """What the folder says of itself."""

    architecture: str
    normalise: bool
    base: Weights
    source: TargetSource
    config: HubertAdaptConfig
    training: Sequence[Heard]
    """Whose sound was trained on, those left out included where their files were read."""
    val: Sequence[Heard]
    transductive: bool
    device: str
    """Where, by how many processes of how many threads."""


def write_result(
    folder: Folder, name: str, state: "Mapping[str, Tensor]", entry: Mapping[str, Any], facts: Facts
) -> Path:
    """Make ``FOLDER/<name>``, whole or not at all.

    Args:
        state: ``plain_state`` of the network.
        entry: what the log says of it.
    """
    from safetensors.torch import save_file

    target = folder.path / name
    made = folder.path / f".{name}.{uuid.uuid4().hex}{TEMPORARY}"
    made.mkdir(parents=True)
    encoder = {key.removeprefix("encoder."): values for key, values in state.items() if key.startswith("encoder.")}
    encoder[MASK_VECTOR] = state["mask_vector"]
    head = {key.removeprefix("head."): values for key, values in state.items() if key.startswith("head.")}
    # Clones: tensors that share memory are refused, and those of an inference mode cannot be written.
    save_file(_own(encoder), made / TENSORS, {"format": "pt"})
    offset = len(head["table"]) - facts.config.targets.clusters
    # One entry: safetensors writes several in an order of chance, and the file would have another sha256 each time.
    save_file(_own(head), made / HEAD, {"offset": str(offset)})
    (made / "config.json").write_text(_config(facts.architecture, encoder))
    (made / "preprocessor_config.json").write_text(_as_text(_preprocessor(normalise=facts.normalise)))
    (made / ADAPTED).write_text(_as_text(adapted(facts, int(entry["step"]))))
    (made / "README.md").write_text(card(facts, entry))
    shutil.copyfile(folder.path / QUANTISER, made / QUANTISER)
    shutil.rmtree(target, ignore_errors=True)
    made.rename(target)
    return target


def adapted(facts: Facts, steps: int) -> dict[str, Any]:
    """``adapted.json``: whose sound these weights heard, by the sha256 of its files; ``fusion`` refuses to score them.

    What the base weights were adapted on before, they have heard as well.
    """
    heard: dict[str, set[str]] = {part: set(hashes) for part, hashes in facts.base.adapted_on.items()}
    for one in facts.training:
        for part, file in one.files.items():
            heard.setdefault(part, set()).add(file.sha256)
    return {
        "trained_on": {part: sorted(hashes) for part, hashes in sorted(heard.items())},
        "clips": sorted(one.clip for one in facts.training),
        "chosen_on": sorted(one.clip for one in facts.val),
        "transductive": facts.transductive,
        "stage": "hubert",
        "base": {"weights": facts.base.spec, "sha256": facts.base.sha256},
        "steps": steps,
    }


def card(facts: Facts, entry: Mapping[str, Any]) -> str:
    """``README.md``, the model card."""
    config, base = facts.config, facts.base
    hours = sum(one.num_samples for one in facts.training if one.usable) / HZ / 3600
    named = facts.source.weights
    if named is None:
        of_targets = "mel cepstra with their first and second differences"
    elif named.sha256 == base.sha256:
        of_targets = f"layer {facts.source.layer} of the same network before adaptation"
    else:
        of_targets = f"layer {facts.source.layer} of `{named.spec}` (sha256 `{named.sha256}`)"
    splits = " and ".join(sorted({one.split for one in facts.training}))
    lines = [
        "---",
        "library_name: transformers",
        f"license: {base.licence.lower() if base.licence == 'Apache-2.0' else 'other'}",
        "pipeline_tag: feature-extraction",
        "tags: [hubert, speech, adapted]",
        "---",
        f"# HuBERT {facts.architecture}, adapted by continued self-supervised pre-training",
        "",
        "**Transductive**: the clips of val and test are among those that it heard; scores on them are no scores on "
        "unseen clips."
        if facts.transductive
        else "It heard clips of the training split alone.",
        "",
        f"* Base weights: `{base.spec}`, sha256 `{base.sha256}`, licence {base.licence}"
        + (", untrained" if base.untrained else f"; trained on {base.trained_on}"),
        f"* Heard: {sum(one.usable for one in facts.training)} clips of {splits}, {hours:.2f} h of sound, no labels",
        f"* Targets: {config.targets.clusters} clusters of {of_targets}",
        f"* Updates: {entry['step']} of {config.steps}, {config.batch_s:g} s of sound each, the first "
        f"{config.head_steps} of the head alone; learning rate {config.lr:g} (head "
        f"{config.head_lr:g}), seed {config.seed}",
        f"* Computed on {facts.device}",
        "",
        "| | hidden steps named right | always the most frequent cluster | cross-entropy |",
        "|---|---|---|---|",
        f"| training clips, since the look before | {_percent(entry['accuracy'])} | | {entry['loss']:.3f} |",
    ]
    if entry["val_loss"] is not None:
        lines.append(
            f"| {len(facts.val)} clips of val | {_percent(entry['val_accuracy'])} | "
            f"{_percent(entry['val_majority'])} | {entry['val_loss']:.3f} |"
        )
    lines += [
        "",
        "`extract run --set hubert.weights=PATH` takes this folder. Every input must be 16 kHz mono"
        + (", of mean 0 and variance 1 over the whole recording." if facts.normalise else "."),
        f"`{HEAD}` and `{QUANTISER}` are what pre-training goes on with; the encoder needs neither.",
        "",
        "## Files that were heard",
        "",
        f"`{ADAPTED}` lists every one by its sha256, and programs of this project refuse to score clips made of them.",
        "",
    ]
    files = [(one.clip, part, file.sha256) for one in facts.training for part, file in sorted(one.files.items())]
    lines += [f"* {clip}, {part}: `{sha256}`" for clip, part, sha256 in files[:LISTED]]
    lines += [f"* and {len(files) - LISTED} more"] if len(files) > LISTED else []
    return "\n".join(lines) + "\n"


def _own(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    return {name: values.detach().cpu().float().clone().contiguous() for name, values in tensors.items()}


def _config(architecture: str, encoder: "Mapping[str, Tensor]") -> str:
    """``config.json`` as transformers reads it. Masking is on in it, since otherwise its network has no mask vector."""
    bias = "feature_extractor.conv_layers.0.conv.bias" in encoder
    config = hubert.build(architecture, conv_bias=bias).config
    config.update({"apply_spec_augment": True, "mask_time_prob": 0.05, "architectures": ["HubertModel"]})
    return str(config.to_json_string(use_diff=False))


def _preprocessor(*, normalise: bool) -> dict[str, Any]:
    return {
        "do_normalize": normalise,
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": normalise,
        "sampling_rate": HZ,
    }


def _as_text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, indent=1) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"

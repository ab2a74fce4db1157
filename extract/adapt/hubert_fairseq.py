"""HuBERT as fairseq saved it, with the head of pre-training that the hub's files lack; nothing in it is executed."""

import pickle
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from extract.archives import too_large
from extract.errors import WeightsError
from extract.weights.files import Weights
from extract.weights.hashes import remembered_sha256

if TYPE_CHECKING:
    from torch import Tensor

OFFSET = 4
"""fairseq's dictionaries begin with four special symbols, so cluster k is class k + 4."""

INERT = ("fairseq.data.dictionary.Dictionary", "argparse.Namespace")
"""Types of what lies beside the tensors (the task's dictionary, old arguments): each becomes a record without code."""

NAMES = (
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.(?:1\.)?", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"post_extract_proj\.", "feature_projection.projection."),
    (r"layer_norm\.", "feature_projection.layer_norm."),
    (r"encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"encoder\.layers\.(\d+)\.self_attn\.", r"encoder.layers.\1.attention."),
    (r"encoder\.layers\.(\d+)\.self_attn_layer_norm\.", r"encoder.layers.\1.layer_norm."),
    (r"encoder\.layers\.(\d+)\.fc1\.", r"encoder.layers.\1.feed_forward.intermediate_dense."),
    (r"encoder\.layers\.(\d+)\.fc2\.", r"encoder.layers.\1.feed_forward.output_dense."),
    (r"mask_emb$", "masked_spec_embed"),
)
"""How a name begins in fairseq, and in transformers. What is not listed is called the same."""

HEAD_NAMES = {"final_proj.weight": "proj.weight", "final_proj.bias": "proj.bias", "label_embs_concat": "table"}


def is_fairseq(path: Path) -> bool:
    """Whether a file is one of fairseq's, by its name: it saves ``.pt``, the hub ``.bin`` and ``.safetensors``."""
    return path.is_file() and path.suffix == ".pt"


def read(path: Path, spec: str) -> "tuple[Weights, dict[str, Tensor]]":
    """A checkpoint of fairseq's pre-training: the network's weights, and its head's tensors as ``head_of`` takes them.

    Raises:
        WeightsError: it is damaged, asks for other code, or is no HuBERT.
    """
    tensors = _tensors(path)
    head = {ours: tensors.pop(theirs).float() for theirs, ours in HEAD_NAMES.items() if theirs in tensors}
    if len(head) < len(HEAD_NAMES) or "post_extract_proj.weight" not in tensors:
        raise WeightsError(
            f"{path}: no HuBERT of fairseq's pre-training: expected final_proj, label_embs_concat and "
            f"post_extract_proj among its tensors, found {', '.join(sorted(tensors)[:4])} ..."
        )
    drawn = {renamed(name): values.float().numpy() for name, values in tensors.items()}
    return Weights(spec, remembered_sha256(path), "unknown (local)", "unknown (local)", drawn=drawn), head


def renamed(name: str) -> str:
    """What transformers calls a tensor."""
    for theirs, ours in NAMES:
        changed, found = re.subn(f"^{theirs}", ours, name)
        if found:
            return changed
    return name


def _tensors(path: Path) -> "dict[str, Tensor]":
    import torch

    bomb = too_large(path, path.stat().st_size)
    if bomb is not None:
        raise WeightsError(f"{path}: {bomb}: it is not read; get the file anew from who made it")
    inert: list[Any] = [(type(name.rpartition(".")[2], (), {}), name) for name in INERT]
    try:
        with torch.serialization.safe_globals(inert):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else "it is no pickle of tensors"
        raise WeightsError(f"{path} cannot be read without executing what may be code: {reason}") from None
    except (OSError, RuntimeError, ValueError, EOFError) as error:
        raise WeightsError(f"{path} is no checkpoint, or a damaged one: {str(error)[:200]}; get it anew") from None
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict) or not all(isinstance(values, torch.Tensor) for values in model.values()):
        raise WeightsError(f"{path}: expected fairseq's checkpoint, with its tensors under `model`")
    return dict(model)

"""GH-Feat's encoder from a file: the authors' pickle, or safetensors made of it."""

import logging

import torch

from extract.models.ghfeat import official
from extract.models.ghfeat.network import Encoder, from_tensors
from extract.weights.files import Weights

log = logging.getLogger(__name__)


def load(architecture: str, weights: Weights, device: torch.device | str = "cpu") -> Encoder:
    """``from_tensors`` of what the config names, on ``device``: the authors' pickle, or safetensors made of it.

    Raises:
        WeightsError: as above, or the file is damaged or not what it should be.
    """
    if weights.path is not None and weights.path.suffix == ".pkl":
        found = official.read(weights.path, architecture)
        if not found.source_is_known:
            log.warning(
                "weights %r: the file carries another definition of the network than the published one (sha256 %s); "
                "the names and shapes fit",
                weights.spec,
                found.source_sha256,
            )
        placed = {name: tensor.to(device) for name, tensor in found.tensors.items()}
        return from_tensors(architecture, placed, weights.spec)
    return from_tensors(architecture, weights.tensors(device), weights.spec)

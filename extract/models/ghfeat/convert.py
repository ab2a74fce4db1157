"""The authors' pickle as a plain safetensors file of the same numbers."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch

from extract.errors import UsageError
from extract.files import LocalFiles
from extract.models.ghfeat import official
from extract.models.ghfeat.network import ARCHITECTURES
from extract.names import suggestion
from extract.weights.files import file_sha256


@dataclass(frozen=True)
class Converted:
    """What was written."""

    num_tensors: int
    sha256: str
    """Of the new file."""
    name: str
    """The network's own, as ``E_gpu0``."""
    source_sha256: str
    """Of the definition that the pickle carries along."""
    source_is_known: bool
    """Whether that is the published one."""


def convert(file: Path, out: Path, architecture: str) -> Converted:
    """Write the encoder's tensors by the names of ``network.py``; its metadata say what they were made of.

    Raises:
        UsageError: an unknown architecture, or ``out`` is no ``.safetensors``.
        WeightsError: see ``official.read``.
        MachineError: the disk is full.
    """
    if architecture not in ARCHITECTURES:
        raise UsageError(
            f"--architecture {architecture}: no such architecture; {suggestion(architecture, ARCHITECTURES)}"
        )
    if out.suffix != ".safetensors":
        raise UsageError(f"-o {out}: expected a name that ends in .safetensors")
    found = official.read(file, architecture)
    metadata = {"architecture": architecture, "made_of": file_sha256(file), "source_sha256": found.source_sha256}
    data = safetensors.torch.save(found.tensors, metadata)
    LocalFiles(out.parent).write(out.name, data)
    sha256 = hashlib.sha256(data).hexdigest()
    return Converted(len(found.tensors), sha256, found.name, found.source_sha256, found.source_is_known)

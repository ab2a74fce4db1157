"""The authors' weight file ``ghfeat-encoder-*-256.pkl``: read without executing anything, checked, renamed.

A Python pickle of the tuple (E, G, D, Gs); each is a network with its variables by name and, as a string, the source of
the module that built it. Their own loader runs that source. Here it is hashed and otherwise left alone, and no name in
the file is ever resolved to a function: what a pickle may call is replaced by inert records of what was asked.
"""

import hashlib
import pickle
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from extract.errors import WeightsError
from extract.models.ghfeat.network import ARCHITECTURES, shapes
from extract.weights.loading import listed

KNOWN_SOURCE_SHA256 = "7e29324edb3a036188b23e578ef53be6e624c3ce7dba0824a490ef3a33bf1b64"
"""Of ``training/networks_ghfeat.py`` (genforce/ghfeat c7fb5f0), the definition that ``network.py`` follows."""

MOST_OPCODES = 1_000_000
"""The released form needs a few thousand."""


@dataclass(frozen=True)
class Official:
    """What was found in a file."""

    tensors: dict[str, Tensor]
    """By the names of ``network.py``, float32."""
    source_sha256: str
    """Of the embedded source text."""
    name: str
    """The network's own, as ``E_gpu0``."""

    @property
    def source_is_known(self) -> bool:
        """Whether the weights were saved with exactly the published definition."""
        return self.source_sha256 == KNOWN_SOURCE_SHA256


def read(path: Path, architecture: str) -> Official:
    """The encoder of the file, its variables those of ``architecture`` and no others.

    Raises:
        WeightsError: no such pickle, a name that it must not use, a damaged array, or other variables; they are listed.
    """
    state = _encoder_state(unpickle(path), path)
    source = state["build_module_src"]
    variables = _variables(state["variables"], path)
    _check_kwargs(state["static_kwargs"], architecture, path)
    return Official(
        from_tensorflow(variables, architecture, str(path)),
        hashlib.sha256(source.encode()).hexdigest(),
        str(state["name"]),
    )


# ---- names and layouts ---------------------------------------------------------------------------------------------

_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
_HEADS = ("HighLevel", "MidLevel", "LowLevel")


def from_tensorflow(variables: Mapping[str, NDArray[Any]], architecture: str, spec: str) -> dict[str, Tensor]:
    """TensorFlow's variables (HWIO, [in, out]) as torch's tensors (OIHW, [out, in]), float32.

    Raises:
        WeightsError: a variable is missing, unexpected, of another shape or type, not finite, or a negative variance.
    """
    expected = shapes(architecture)
    ours = {tensorflow_name(name): name for name in expected}
    wanted = {theirs: _tensorflow_shape(expected[name]) for theirs, name in ours.items()}
    bad = {
        "not float32": [n for n, v in variables.items() if v.dtype != np.float32],
        "not finite": [n for n, v in variables.items() if v.dtype == np.float32 and not np.isfinite(v).all()],
        "negative": [n for n, v in variables.items() if n.endswith("moving_variance") and (v < 0).any()],
    }
    faults = listed(wanted, {name: tuple(values.shape) for name, values in variables.items()}, bad)
    if faults:
        raise WeightsError(f"{spec}: not the variables of a GH-Feat encoder {architecture}: {faults}")
    tensors = {}
    for name, values in variables.items():
        turned = values.transpose(3, 2, 0, 1) if values.ndim == 4 else values.T
        tensors[ours[name]] = torch.from_numpy(np.array(turned, order="C"))  # a writable copy
    return tensors


def tensorflow_name(name: str) -> str:
    """What the authors' graph calls our tensor ``name``: ``stages.0.2.conv_b.bias`` is ``stage1_unit3/Convb/bias``.

    The basic blocks of depth 18 and 34 were never released: their names are taken to follow the bottlenecks'.
    """
    parts = name.split(".")
    last = parts.pop()
    kind = parts.pop() if parts[0] not in {"fpn", "sam"} else ""
    if kind.startswith("norm"):
        last = f"batch_norm/{_NORM[last]}"
    match parts:
        case ["stem"]:
            scope = "Conv0"
        case ["heads", number]:
            scope = _HEADS[int(number)]
        case ["fpn", "lateral", number]:
            scope = f"fpn/lconv_{int(number) + 3}"
        case ["fpn", _, number]:
            scope = f"fpn/fconv_{number}"
        case ["sam", _, number]:
            scope = f"fuse_conv_{number}"
        case [_, stage, unit]:
            where = "stage5" if stage == "4" else f"stage{int(stage) + 1}_unit{int(unit) + 1}"
            scope = f"{where}/{'Shortcut' if kind.endswith('skip') else f'Conv{kind[-1]}'}"
        case _:
            raise ValueError(name)
    return f"{scope}/{last}"


def _tensorflow_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape[::-1]


# ---- the pickle ----------------------------------------------------------------------------------------------------


class _Inert:
    """Stands for whatever a pickle would make: keeps what it was made with and what was set, and does nothing."""

    args: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *args: object) -> None:  # not called for what comes without arguments
        self.args = args

    def __setstate__(self, state: object) -> None:
        self.state = state


class _Network(_Inert):
    """``dnnlib.tflib.network.Network``."""


class _Array(_Inert):
    """What ``_reconstruct`` or ``_frombuffer`` would make, or a NumPy scalar."""


class _Scalar(_Inert):
    """A NumPy scalar."""


class _DType(_Inert):
    """``numpy.dtype``."""


class _Marker(_Inert):
    """A class that is named but needs no instance (``numpy.ndarray``)."""


class _Text(_Inert):
    """``_codecs.encode``: how protocols below 3 write bytes."""


class _Mapping(dict[Any, Any]):
    """``EasyDict`` or ``OrderedDict``, which some releases used within the keyword arguments."""

    def __setstate__(self, state: object) -> None:
        if isinstance(state, dict):
            self.update(state)


_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
ALLOWED: dict[tuple[str, str], type] = {
    ("dnnlib.tflib.network", "Network"): _Network,
    ("dnnlib.util", "EasyDict"): _Mapping,
    ("collections", "OrderedDict"): _Mapping,
    ("numpy", "ndarray"): _Marker,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _Text,
    **{(module, "_reconstruct"): _Array for module in _MULTIARRAY},
    **{(module, "scalar"): _Scalar for module in _MULTIARRAY},
    **{(module, "_frombuffer"): _Array for module in _NUMERIC},
}
"""Every global that such a file may name, and what stands for it here. None of these calls anything."""


class _RefusedError(Exception):
    """A global that is not in ALLOWED."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> type:
        """The inert stand-in. Nothing is imported, whatever the file says."""
        if (module, name) not in ALLOWED:
            raise _RefusedError(f"{module}.{name}")
        return ALLOWED[module, name]

    def persistent_load(self, pid: Any) -> Any:  # noqa: ANN401 - pickle's own signature
        """Refused: such references point outside the file."""
        raise _RefusedError(f"the persistent object {pid!r}")


def unpickle(path: Path) -> object:
    """The object of a pickle, its classes replaced by inert ones.

    Raises:
        WeightsError: the file is no pickle, is damaged, or names a global that no such file needs.
    """
    try:
        with path.open("rb") as file:
            _scan(file)
            file.seek(0)
            return _Unpickler(file).load()
    except _RefusedError as error:
        raise WeightsError(
            f"{path} asks for {error}, which the weights of GH-Feat never need: refused, nothing was executed; "
            "get the file anew from its authors' page"
        ) from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    except Exception as error:  # a damaged pickle can raise anything
        raise WeightsError(f"{path} is no pickle of weights, or a damaged one ({error}); get it anew") from error


def _scan(file: IO[bytes]) -> None:
    """Read the opcodes without acting on them: a place number far beyond them would fill the memory."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > MOST_OPCODES:
            raise ValueError(f"more than {MOST_OPCODES} opcodes")
        if opcode.name.endswith("PUT") and int(argument or 0) > MOST_OPCODES:
            raise ValueError(f"{opcode.name} {argument} at {count} opcodes")


def _encoder_state(found: object, path: Path) -> dict[str, Any]:
    """The first network's state, its fields of the types that the original writes."""
    first = found[0] if isinstance(found, tuple) and found else None
    if not isinstance(first, _Network) or not isinstance(first.state, dict):
        raise WeightsError(f"{path} holds {_said(found)}, expected the tuple (E, G, D, Gs) of GH-Feat's networks")
    expected = {"name": str, "static_kwargs": dict, "build_module_src": str, "build_func_name": str, "variables": list}
    wrong = [
        f"{key}: {_said(first.state.get(key))}"
        for key, kind in expected.items()
        if not isinstance(first.state.get(key), kind)
    ]
    version = first.state.get("version")
    if type(version) is not int or version not in {2, 3}:
        wrong.append(f"version: {_said(version) if isinstance(version, _Inert) else repr(version)[:40]}")
    if wrong:
        raise WeightsError(f"{path}: the encoder's state is not of the released form: {'; '.join(wrong)}")
    return first.state


def _check_kwargs(kwargs: Mapping[str, Any], architecture: str, path: Path) -> None:
    sizes = ARCHITECTURES[architecture]
    wanted = {"depth": sizes.depth, "size": sizes.image_px}
    wrong = [f"{key} {kwargs[key]!r}, expected {want}" for key, want in wanted.items() if kwargs.get(key, want) != want]
    if wrong:
        raise WeightsError(f"{path}: not an encoder {architecture}: {'; '.join(wrong)}")


def _variables(entries: list[Any], path: Path) -> dict[str, NDArray[Any]]:
    variables: dict[str, NDArray[Any]] = {}
    for entry in entries:
        if not (isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[0], str)):
            raise WeightsError(f"{path}: a variable is {_said(entry)}, expected a name and an array")
        name, values = entry
        if name in variables:
            raise WeightsError(f"{path}: variable {name} is there twice")
        try:
            variables[name] = _array(values)
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
            raise WeightsError(f"{path}: variable {name} is no plain array: {error}") from None
    return variables


def _array(record: object) -> NDArray[Any]:
    """What a record of NumPy's pickle stands for, made from its bytes alone: no pickled object array passes."""
    if isinstance(record, _Scalar):
        dtype, data = record.args
        return np.frombuffer(_bytes(data), _dtype(dtype)).reshape(())
    if not isinstance(record, _Array):
        raise TypeError(f"it is {_said(record)}")
    if record.state is None:  # protocol 5: bytes, type, shape, order
        data, dtype, shape, order = record.args
        fortran = {"C": False, "F": True}[str(order)]
    else:
        _, shape, dtype, fortran, data = record.state
    values = np.frombuffer(_bytes(data), _dtype(dtype))
    if not (isinstance(shape, tuple) and all(type(size) is int and size >= 0 for size in shape)):
        raise TypeError(f"its shape is {shape!r}")
    native: NDArray[Any] = values.astype(values.dtype.newbyteorder("="), copy=False)
    return native.reshape(shape, order="F" if fortran else "C")


def _dtype(record: object) -> np.dtype[Any]:
    if not isinstance(record, _DType) or not record.args or record.args[0] not in {"f2", "f4", "f8", "i4", "i8"}:
        raise TypeError(f"its type is {_said(record)} {getattr(record, 'args', '')}")
    byte_order = record.state[1] if isinstance(record.state, tuple) and len(record.state) > 1 else "<"
    if byte_order not in {"<", ">", "="}:
        raise TypeError(f"its byte order is {byte_order!r}")
    return np.dtype(f"{byte_order}{record.args[0]}")


def _bytes(data: object) -> bytes:
    if isinstance(data, _Text):  # encode("...", "latin1")
        text, encoding = data.args
        if not isinstance(text, str) or encoding != "latin1":
            raise TypeError("its bytes are encoded in an unknown way")
        return text.encode("latin1")
    if not isinstance(data, bytes | bytearray):
        raise TypeError(f"its values are {_said(data)}, not bytes")
    return bytes(data)


def _said(found: object) -> str:
    if isinstance(found, _Inert):
        return type(found).__name__.strip("_").lower()
    return "nothing" if found is None else type(found).__name__

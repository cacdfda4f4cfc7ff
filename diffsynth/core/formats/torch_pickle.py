"""What the pickle of a torch file means: storages by key, tensors as views of them, dicts of tensors.

``torch.save`` writes a tensor as a call of ``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)``
where the storage is a persistent id ``("storage", type, key, location, number of elements)``. Both of its file
formats, zip and legacy, hold such a pickle and differ in where the bytes of a storage lie.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from diffsynth.core.formats.content import CONVERT_ELSEWHERE, DOWNLOAD_AGAIN
from diffsynth.core.formats.pickle_data import Arguments, Call, Global, Opaque, PickleReader, plain_key, refuse_call
from diffsynth.core.formats.table import Extent, TensorRecord, are_sizes, locate_view
from diffsynth.errors import CheckpointError, CorruptCheckpoint, UnsupportedCheckpoint, printable

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
DTYPES = {
    Global("torch", str(dtype).removeprefix("torch.")): dtype
    for dtype in (
        *STORAGE_DTYPES.values(), torch.uint16, torch.uint32, torch.uint64, torch.complex32, torch.float8_e4m3fn,
        torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of ``count`` elements of ``dtype``; where it lies is the file format's business."""

    key: str
    dtype: torch.dtype
    count: int

    @property
    def nbytes(self) -> int:
        """Its length in bytes."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor: a strided view of a storage, offset and strides in elements."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class TorchPickleReader:
    """Reads the pickles of one torch file and remembers the storages they name.

    Args:
        path: the file, for messages.
    """

    def __init__(self, path: Path) -> None:
        self.storages: dict[str, Storage] = {}
        self._path = path
        self._calls: dict[Global, Call] = {
            **_HARMLESS_CALLS,
            Global("torch._utils", "_rebuild_tensor"): self._rebuild_tensor,
            Global("torch._utils", "_rebuild_tensor_v2"): self._rebuild_tensor,
            Global("torch._utils", "_rebuild_tensor_v3"): self._rebuild_untyped,
            Global("torch._utils", "_rebuild_parameter"): self._rebuild_parameter,
            Global("torch._utils", "_rebuild_parameter_with_state"): self._rebuild_parameter,
            Global("torch._tensor", "_rebuild_from_type_v2"): self._rebuild_from_type,
        }

    def read(self, stream: BinaryIO) -> object:
        """Return the value of the next pickle in the stream.

        Raises:
            UnsafeCheckpoint: it calls something that weights do not need.
            UnsupportedCheckpoint: it holds tensors that are not dense, or a whole module.
            CorruptCheckpoint: it cannot be read, or contradicts itself.
        """
        return PickleReader(self._path, self._calls, self._refuse, self._load_storage).read(stream)

    def _refuse(self, function: Global) -> CheckpointError:
        if function.module.startswith("torch.nn."):
            return self._whole_module(function)
        if function == Global("torch.serialization", "_get_layout"):
            return self._unsupported("holds a tensor that is sparse, not dense")
        if function.module in ("torch._utils", "torch._tensor") and function.name.startswith("_rebuild_"):
            kind = function.name.removeprefix("_rebuild_")
            return self._unsupported(f"holds a tensor of a kind we do not read ({printable(kind)})")
        return refuse_call(self._path, function)

    def _whole_module(self, kind: Global) -> UnsupportedCheckpoint:
        problem = f"is a pickled program object ({kind}), not a mapping of names to tensors"
        return UnsupportedCheckpoint(self._path, problem, CONVERT_ELSEWHERE)

    def _unsupported(self, problem: str) -> UnsupportedCheckpoint:
        return UnsupportedCheckpoint(self._path, problem, "Only dense strided tensors are read; save it as such.")

    def _corrupt(self, problem: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(self._path, problem, DOWNLOAD_AGAIN)

    def _load_storage(self, identity: object) -> Storage:
        match identity:
            case ("storage", Global(module=module, name=name), str(key), str(location), int(count), *view):
                pass
            case ("module", Global() as kind, *_):
                raise self._whole_module(kind)
            case _:
                raise self._corrupt("its pickle names a storage in a way that torch does not")
        if module not in ("torch", "torch.storage", "torch.cuda") or name not in STORAGE_DTYPES:
            raise self._unsupported(f"holds a storage of the type {Global(module, name)}")
        if any(part is not None for part in view) or location == "meta":
            raise self._unsupported("holds a view of a storage in the form of 2017, or a tensor without data")
        if not are_sizes((count,)):
            raise self._corrupt(f"its storage {printable(key)} has an impossible size")
        storage = Storage(key, STORAGE_DTYPES[name], count)
        if self.storages.setdefault(key, storage) != storage:
            raise self._corrupt(f"describes its storage {printable(key)} in two ways")
        return storage

    def _rebuild_tensor(self, arguments: Arguments) -> TensorView:
        match arguments:
            case (Storage() as storage, offset, shape, stride, *rest):
                pass
            case _:
                raise self._corrupt("its pickle describes a tensor in a way that torch does not")
        if len(rest) > 2 and rest[2]:
            raise self._unsupported("holds a tensor that is the conjugate or the negative of what is stored")
        return self._view(storage, storage.dtype, offset, shape, stride)

    def _rebuild_untyped(self, arguments: Arguments) -> TensorView:
        match arguments:
            case (Storage() as storage, offset, shape, stride, _, _, Global() as dtype, *rest):
                pass
            case _:
                raise self._corrupt("its pickle describes a tensor in a way that torch does not")
        if dtype not in DTYPES or any(rest):
            raise self._unsupported(f"holds a tensor of the dtype {dtype}")
        return self._view(storage, DTYPES[dtype], offset, shape, stride)

    def _view(self, storage: Storage, dtype: torch.dtype, offset: object, shape: object, stride: object) -> TensorView:
        if not (are_sizes((offset,)) and are_sizes(shape) and are_sizes(stride)):
            raise self._corrupt("holds a tensor whose sizes, strides or offset are no numbers from 0 to 2^63 - 1")
        assert isinstance(offset, int)
        assert isinstance(shape, (tuple, list))
        assert isinstance(stride, (tuple, list))
        if len(shape) != len(stride):
            raise self._corrupt(f"holds a tensor with {len(shape)} sizes and {len(stride)} strides")
        return TensorView(storage, dtype, offset, tuple(shape), tuple(stride))

    def _rebuild_parameter(self, arguments: Arguments) -> TensorView:
        match arguments:
            case (TensorView() as data, *_):
                return data
        raise self._corrupt("its pickle describes a parameter in a way that torch does not")

    def _rebuild_from_type(self, arguments: Arguments) -> TensorView:
        """A tensor with attributes of its own, which are dropped, or of a class of its own, which is refused."""
        match arguments:
            case (Global() as function, Global() as kind, tuple(inner), *_):
                pass
            case _:
                raise self._corrupt("its pickle describes a tensor in a way that torch does not")
        if kind not in (Global("torch", "Tensor"), Global("torch.nn.parameter", "Parameter")):
            raise self._unsupported(f"holds a tensor of the class {kind}")
        if function.name == "_rebuild_from_type_v2":
            raise self._corrupt("nests a tensor in itself")
        if function not in self._calls:
            raise self._refuse(function)
        tensor = self._calls[function](inner)
        if not isinstance(tensor, TensorView):
            raise self._corrupt("its pickle describes a tensor in a way that torch does not")
        return tensor


def locate_tensors(
    path: Path, tensors: Mapping[str, TensorView], extent_of: Callable[[Storage], Extent]
) -> dict[str, TensorRecord]:
    """Return where each tensor lies in the file, given where its storages lie.

    Raises:
        CorruptCheckpoint: a tensor reaches beyond its storage.
        UnsupportedCheckpoint: a tensor's elements share memory with one another.
    """
    return {
        key: locate_view(
            path,
            key,
            view.dtype,
            shape=view.shape,
            stride=view.stride,
            storage=extent_of(view.storage),
            offset=view.offset,
        )
        for key, view in tensors.items()
    }


def _ordered_dict(arguments: Arguments) -> dict[object, object]:
    """Return the dict that ``OrderedDict()`` or ``OrderedDict([[key, value], ...])`` stands for."""
    pairs = arguments[0] if arguments and isinstance(arguments[0], list) else []
    return {plain_key(pair[0]): pair[1] for pair in pairs if isinstance(pair, (list, tuple)) and len(pair) == 2}


def _size(arguments: Arguments) -> object:
    return arguments[0] if arguments and isinstance(arguments[0], tuple) else ()


def _opaque(_: Arguments) -> Opaque:
    return Opaque()


# What is found beside weights in files of training programs, and has no effect when it is left out.
_IGNORED = (
    *(f"builtins {name}" for name in ("set", "frozenset", "bytearray", "complex", "slice")),
    *(f"numpy.{core}.multiarray {name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy dtype",
    "_codecs encode",
    "collections Counter",
    "torch device",
)
_HARMLESS_CALLS: dict[Global, Call] = {
    Global("collections", "OrderedDict"): _ordered_dict,
    Global("collections", "defaultdict"): lambda _: {},
    Global("torch", "Size"): _size,
    **{Global(*name.split(" ")): _opaque for name in _IGNORED},
}

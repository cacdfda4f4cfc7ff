"""Pickles read as data: an interpreter that builds plain values and calls nothing.

A pickle is a program for a small stack machine (PEP 307, PEP 3154; the opcodes are documented in the standard
library's ``pickletools``). Here the machine has no way to import or to call: a global is a pair of names, and
"call this global" looks the pair up in a table of our own functions. What is not in the table is an error.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

from diffsynth.core.formats.content import CONVERT_ELSEWHERE, DOWNLOAD_AGAIN
from diffsynth.errors import CheckpointError, CorruptCheckpoint, UnsafeCheckpoint, printable

MAX_OPERATIONS = 4_000_000  # a network of 20 000 tensors takes about 700 000
MAX_BYTES = 64 * 1024**2

Arguments: TypeAlias = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Global:
    """A function or class that a pickle names; two strings and nothing behind them."""

    module: str
    name: str

    def __str__(self) -> str:
        return printable(f"{self.module}.{self.name}", 120)


class Opaque:
    """A harmless value that nobody needs: a set, a device, a NumPy number."""

    __slots__ = ()


Call: TypeAlias = Callable[[Arguments], object]


class _Budget:
    """A stream that refuses to hand out more bytes than a pickle may have."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._left = stream, MAX_BYTES

    def _spend(self, data: bytes) -> bytes:
        self._left -= len(data)
        return data

    def read(self, size: int) -> bytes:
        if size > self._left:
            raise ValueError(f"more than {MAX_BYTES} bytes")
        return self._spend(self._stream.read(size))

    def readline(self) -> bytes:
        return self._spend(self._stream.readline(self._left))


class PickleReader:
    """Interprets one pickle.

    Args:
        path: the file, for messages.
        calls: the globals that may be called, and our function for each.
        refuse: makes the error for any other global that the pickle would call.
        persistent: our function for values kept outside of the pickle.
    """

    def __init__(
        self,
        path: Path,
        calls: Mapping[Global, Call],
        refuse: Callable[[Global], CheckpointError],
        persistent: Callable[[object], object],
    ) -> None:
        self._path, self._calls, self._refuse, self._persistent = path, calls, refuse, persistent
        self._stack: list[object] = []
        self._below: list[list[object]] = []  # the stacks under each mark
        self._memo: dict[int, object] = {}

    def read(self, stream: BinaryIO) -> object:
        """Return the value of the pickle that starts here; the stream is left behind its last byte.

        Raises:
            UnsafeCheckpoint: it would call something that is not in the table.
            CorruptCheckpoint: it ends early, contradicts itself, or is too long.
        """
        for name, argument in self._operations(stream):
            if name in ("PROTO", "FRAME", "STOP"):
                continue
            try:
                self._step(name, argument)
            except (IndexError, KeyError) as error:
                raise self._corrupt(f"takes a value that is not there ({name})") from error
        if len(self._stack) != 1 or self._below:
            raise self._corrupt("ends in the middle of a value")
        return self._stack[0]

    def _operations(self, stream: BinaryIO) -> Iterator[tuple[str, object]]:
        operations = pickletools.genops(_Budget(stream))  # type: ignore[arg-type]
        for _ in range(MAX_OPERATIONS):
            try:
                operation, argument, _ = next(operations)
            except (ValueError, OverflowError) as error:
                raise self._corrupt(f"cannot be read ({printable(error)})") from error
            yield operation.name, argument
            if operation.name == "STOP":
                return
        raise self._corrupt(f"has more than {MAX_OPERATIONS} operations")

    def _corrupt(self, problem: str) -> CorruptCheckpoint:
        return CorruptCheckpoint(self._path, f"its pickle {problem}", DOWNLOAD_AGAIN)

    def _step(self, name: str, argument: object) -> None:
        """Carry out one operation; IndexError and KeyError mean that a value it takes is absent."""
        stack = self._stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _PUT:
            self._memo[_index(argument)] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in _GET:
            stack.append(self._memo[_index(argument)])
        elif name in _TUPLES:
            size = _TUPLES[name]
            if len(stack) < size:
                raise IndexError
            stack[len(stack) - size :] = [tuple(stack[len(stack) - size :])]
        elif name == "MARK":
            self._below.append(stack)
            self._stack = []
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        else:
            getattr(self, f"_op_{name.lower()}", self._op_unknown)(argument)

    def _since_mark(self) -> list[object]:
        values, self._stack = self._stack, self._below.pop()
        return values

    # Containers -------------------------------------------------------------------------------------------

    def _op_tuple(self, _: object) -> None:
        values = tuple(self._since_mark())
        self._stack.append(values)

    def _op_list(self, _: object) -> None:
        values = self._since_mark()
        self._stack.append(values)

    def _op_dict(self, _: object) -> None:
        values = self._since_mark()
        self._stack.append({})
        self._set_items(values)

    def _op_frozenset(self, _: object) -> None:
        self._since_mark()
        self._stack.append(Opaque())

    def _op_additems(self, _: object) -> None:
        self._since_mark()

    def _op_append(self, _: object) -> None:
        self._extend([self._stack.pop()])

    def _op_appends(self, _: object) -> None:
        self._extend(self._since_mark())

    def _extend(self, values: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise self._corrupt("appends to something that is no list")
        target.extend(values)

    def _op_setitem(self, _: object) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set_items([key, value])

    def _op_setitems(self, _: object) -> None:
        self._set_items(self._since_mark())

    def _set_items(self, values: list[object]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise self._corrupt("sets items of something that is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if isinstance(key, str) and key in target:
                raise self._corrupt(f"names {printable(key, 120)} twice")
            target[plain_key(key)] = value

    # The stack --------------------------------------------------------------------------------------------

    def _op_pop(self, _: object) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._stack = self._below.pop()

    def _op_pop_mark(self, _: object) -> None:
        self._since_mark()

    def _op_dup(self, _: object) -> None:
        self._stack.append(self._stack[-1])

    # Globals and calls ------------------------------------------------------------------------------------

    def _op_global(self, argument: object) -> None:
        self._stack.append(_named(*str(argument).split(" ", 1)))

    def _op_stack_global(self, _: object) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self._corrupt("names a global without text")
        self._stack.append(_named(module, name))

    def _op_reduce(self, _: object) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            raise self._corrupt("calls something that is no function")
        self._stack.append(self.call(function, arguments))

    def call(self, function: Global, arguments: Arguments) -> object:
        """Return what our function for this global makes of the arguments.

        Raises:
            CheckpointError: there is none.
        """
        if function not in self._calls:
            raise self._refuse(function)
        return self._calls[function](arguments)

    def _op_build(self, _: object) -> None:
        """Attributes of an object: kept by none of our values, harmless on those of them that are no tensors."""
        self._stack.pop()
        if not isinstance(self._stack[-1], (dict, Opaque)):
            raise self._refuse(Global("object", "__setstate__"))

    def _op_newobj(self, _: object) -> None:
        self._refuse_instance(self._stack[-2])

    def _op_newobj_ex(self, _: object) -> None:
        self._refuse_instance(self._stack[-3])

    def _op_obj(self, _: object) -> None:
        self._refuse_instance(self._since_mark()[0])

    def _op_inst(self, argument: object) -> None:
        self._refuse_instance(_named(*str(argument).split(" ", 1)))

    def _refuse_instance(self, kind: object) -> None:
        raise self._refuse(kind) if isinstance(kind, Global) else self._corrupt("makes an instance of no class")

    def _op_ext1(self, argument: object) -> None:
        raise self._refuse(Global("copyreg", f"extension {argument}"))

    _op_ext2 = _op_ext4 = _op_ext1

    def _op_persid(self, argument: object) -> None:
        self._stack.append(self._persistent(argument))

    def _op_binpersid(self, _: object) -> None:
        self._stack.append(self._persistent(self._stack.pop()))

    def _op_unknown(self, _: object) -> None:
        raise self._corrupt("uses an operation that no file of weights needs")


def plain_key(key: object) -> object:
    """Return a dict key that is quick to hash: hashing a tuple walks all of it, shared parts again and again."""
    return key if isinstance(key, (str, int, float, bytes, Global, type(None))) else Opaque()


def refuse_call(path: Path, function: Global) -> UnsafeCheckpoint:
    """Return the error for a pickle that would call this global."""
    return UnsafeCheckpoint(
        path,
        f"is a pickle that calls {function}, which weights do not need; nothing of it was run",
        f"Look for a safetensors file of the same weights. {CONVERT_ELSEWHERE}",
    )


def _named(module: str, name: str = "") -> Global:
    """Return a global under its name in Python 3."""
    return Global({"__builtin__": "builtins", "copy_reg": "copyreg"}.get(module, module), name)


def _index(argument: object) -> int:
    if not isinstance(argument, int):
        raise KeyError(argument)
    return argument


# The operations that push what stands behind them.
_VALUES = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip
_PUT = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GET = frozenset({"GET", "BINGET", "LONG_BINGET"})
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CONSTANTS: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": Opaque,
}

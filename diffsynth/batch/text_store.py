"""The features of a job's texts while nobody can encode them again: in memory if there is room, else on the disk."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from diffsynth.pipelines.texts import Texts, tensors_in, with_tensors


class TextStore(Mapping[Hashable, Any]):
    """Features by text, as ``Texts`` takes them; each is read when it is asked for.

    The file has no name where the system permits that, so that nothing is left of it after a crash. It lies in the
    folder for temporary files, which ``TMPDIR`` names.

    Args:
        memory: bytes that are kept in memory; with more, all of them are kept in the file.
    """

    def __init__(self, memory: int) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=max(memory, 1))  # noqa: SIM115 - closed by __exit__
        self._places: dict[Hashable, tuple[int, Any]] = {}  # offset, and features without their values
        self.nbytes = 0

    def add(self, texts: Texts) -> None:
        """Keep the features of texts.

        Raises:
            OSError: the disk is full; ``filename`` is the folder.
        """
        for text, features in texts.features.items():
            self._places[text] = self.nbytes, with_tensors(features, lambda tensor: tensor.to("meta"))
            for tensor in tensors_in(features):
                self._write(bytes_of(tensor))

    def _write(self, values: bytes) -> None:
        try:
            self._file.seek(self.nbytes)
            self._file.write(values)
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), tempfile.gettempdir()) from error
        self.nbytes += len(values)

    def __getitem__(self, text: Hashable) -> Any:
        offset, features = self._places[text]
        self._file.seek(offset)
        return with_tensors(features, self._read)

    def _read(self, like: Tensor) -> Tensor:
        values = bytearray(self._file.read(like.nbytes))
        return torch.frombuffer(values, dtype=torch.uint8).view(like.dtype).view(like.shape)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def bytes_of(tensor: Tensor) -> bytes:
    """Return the values of a tensor, row by row."""
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()

"""Pictures that a job names: found inside its folder, opened when they are needed, known by their pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from diffsynth.errors import InvalidRequest, printable
from diffsynth.pipelines.latent_file import SUFFIX, open_latents
from diffsynth.pipelines.latent_image import LatentImage
from diffsynth.pipelines.pictures import eight_bits, open_picture


@dataclass(frozen=True)
class PictureFile:
    """A picture, or latents, in a file that is opened when it is needed.

    Args:
        path: where it is.
        digest: sha256 of its pixels and size.
    """

    path: Path
    digest: str

    def open(self) -> Any:
        """Return the picture.

        Raises:
            InvalidRequest: the file holds another one by now.
            OSError: it cannot be read.
        """
        picture = _open(self.path)
        if digest_of(picture) != self.digest:
            raise InvalidRequest(f"{printable(self.path, 300)} was changed while the job ran.")
        return picture


@dataclass(frozen=True)
class PictureInMemory:
    """A picture that the caller gave."""

    digest: str
    picture: Any = field(compare=False)

    def open(self) -> Any:
        """Return the picture."""
        return self.picture


def find_picture(name: str | Path, folder: Path, *, confined: bool) -> PictureFile:
    """Return a picture that a job names.

    Args:
        name: relative to the folder.
        folder: of the job.
        confined: whether it must lie inside the folder, links followed.

    Raises:
        InvalidRequest: it does not, or is no picture.
        OSError: it cannot be read.
    """
    try:
        path = (folder / name).resolve()
    except (ValueError, RuntimeError) as error:  # a zero byte, a link to itself
        raise InvalidRequest(f"{printable(name)} cannot be the name of a picture: {printable(error)}.") from error
    if confined and not path.is_relative_to(folder.resolve()):
        raise InvalidRequest(f"{printable(name)} lies outside the job's folder, where pictures must be.")
    stamp = path.stat()
    return PictureFile(path, _digest(path, stamp.st_size, stamp.st_mtime_ns))


@lru_cache(maxsize=100_000)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    return digest_of(_open(path))


@lru_cache(maxsize=8)
def _opened(path: Path, size: int, mtime_ns: int) -> Any:
    return open_latents(path) if path.suffix.lower() == SUFFIX else open_picture(path)


def _open(path: Path) -> Any:
    stamp = path.stat()
    return _opened(path, stamp.st_size, stamp.st_mtime_ns)


def digest_of(picture: Any) -> str:
    """Return the sha256 of a picture's pixels, or of latents."""
    hasher = hashlib.sha256(repr((type(picture).__name__ == "LatentImage", picture.size)).encode())
    if isinstance(picture, LatentImage):
        hasher.update(picture.values.float().cpu().contiguous().numpy().tobytes())
        hasher.update(repr((picture.downscale, picture.latent_scale)).encode())
    else:
        hasher.update(eight_bits(picture).convert("RGBA").tobytes())
    return hasher.hexdigest()

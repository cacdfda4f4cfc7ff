"""Every exception that diffsynth raises on purpose.

DiffSynthError
├── CheckpointError          a weight file or folder; also a ValueError
│   ├── NotACheckpoint           something else under a checkpoint's name: a web page, a pointer, a FIFO
│   ├── CorruptCheckpoint        cut, too long, contradictory, changed while in use
│   ├── UnsafeCheckpoint         a pickle that asks for more than tensors, an index that points elsewhere
│   ├── UnsupportedCheckpoint    readable, but nothing we can take weights from
│   ├── MissingShard             parts of a sharded checkpoint are not there
│   ├── UnknownCheckpoint        no known network has this structure
│   ├── AmbiguousCheckpoint      two networks claim the same tensors
│   ├── StateDictMismatch        a known network, but keys or shapes differ
│   └── AdapterMismatch          a LoRA whose keys or shapes are not those of the networks that are loaded
├── ModelNotLoaded           a lookup or a pipeline needs a network that is not loaded
├── AmbiguousModel           a lookup fits several loaded networks
├── TokenizerNotFound        no vocabulary beside, inside or given with a checkpoint
├── DownloadError            files could not be fetched
├── InvalidRequest           a setting that is unknown, out of range or contradicts another; also a ValueError
├── NonFiniteResult          NaN or infinity in latents or pixels
├── Paused                   a batch cannot write any more; what is finished is kept, and it can go on later
│   └── DeviceLost               this process cannot use its accelerator any more; another process may
└── Cancelled                the caller asked to stop

A message is one paragraph: what is wrong, with names and numbers, then what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path


def printable(text: object, limit: int = 80) -> str:
    """Return text that is safe on a terminal: control characters escaped, at most ``limit`` characters."""
    clean = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in str(text))
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def listed(items: Iterable[object], limit: int = 5) -> str:
    """Join items with commas, naming the first ``limit`` and counting the rest."""
    names = [printable(item, 120) for item in items]
    more = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {more} more" if more > 0 else "")


class DiffSynthError(Exception):
    """The base of every error that diffsynth raises on purpose."""

    def __reduce__(self) -> tuple[object, ...]:
        """Keep message and attributes when another process hands the error over."""
        return _same_error, (type(self), self.args, self.__dict__)


def _same_error(kind: type[DiffSynthError], args: tuple[object, ...], attributes: dict[str, object]) -> DiffSynthError:
    error = kind.__new__(kind, *args)  # its arguments are not those of __init__, which makes a message of them
    error.__dict__.update(attributes)
    return error


class CheckpointError(DiffSynthError, ValueError):
    """A weight file or folder cannot be used.

    Args:
        path: the file or folder.
        problem: what is wrong, expected and found values included, without a final full stop.
        remedy: what to do about it, a sentence, or empty.
    """

    def __init__(self, path: str | PathLike[str], problem: str, remedy: str = "") -> None:
        self.path = Path(path)
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{printable(self.path, 400)}: {problem}." + (f" {remedy}" if remedy else ""))


class NotACheckpoint(CheckpointError):
    """The file holds something else: a web page, a Git LFS pointer, text, an image, or is no regular file."""


class CorruptCheckpoint(CheckpointError):
    """The file is cut, too long, contradicts itself, or changed while it was in use."""


class UnsafeCheckpoint(CheckpointError):
    """The file would run code or reach outside its folder; nothing of it was executed."""


class UnsupportedCheckpoint(CheckpointError):
    """The file is whole, but holds no mapping of names to dense tensors that we could read."""


class MissingShard(CheckpointError):
    """Files that a sharded checkpoint consists of are absent."""


class UnknownCheckpoint(CheckpointError):
    """No known network has the structure of this file."""


class AmbiguousCheckpoint(CheckpointError):
    """Two known networks claim the same tensors of this file."""


class StateDictMismatch(CheckpointError):
    """The file is a known network, but keys or shapes are not those it must have.

    Args:
        path: the file.
        network: the family's name and the layout, for the message.
        missing: keys the network needs and the file lacks.
        unexpected: keys the file has and the network does not know.
        shapes: key → (expected shape, found shape).
    """

    def __init__(
        self,
        path: str | PathLike[str],
        network: str,
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] | None = None,
    ) -> None:
        self.missing, self.unexpected, self.shapes = tuple(missing), tuple(unexpected), dict(shapes or {})
        lines = [f"does not fit {network}"]
        lines += [
            f"  {printable(key, 120)}: expected {expected}, found {found}"
            for key, (expected, found) in list(self.shapes.items())[:5]
        ]
        if len(self.shapes) > 5:
            lines.append(f"  and {len(self.shapes) - 5} more shapes differ")
        if missing:
            lines.append(f"  missing {len(missing)} keys: {listed(missing)}")
        if unexpected:
            lines.append(f"  unexpected {len(unexpected)} keys: {listed(unexpected)}")
        super().__init__(path, "\n".join(lines), "`diffsynth inspect` lists what the file holds.")


class AdapterMismatch(CheckpointError):
    """A LoRA has keys or shapes that the loaded networks do not have.

    Args:
        path: the file.
        networks: labels of the networks that it was held against.
        unmatched: key → the nearest name that a network has, or empty.
        shapes: key → (expected shape, found shape) of the layer that it changes.
        remedy: what to do, a sentence.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        networks: Sequence[str],
        *,
        unmatched: dict[str, str],
        shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
        remedy: str,
    ) -> None:
        self.unmatched, self.shapes = dict(unmatched), dict(shapes)
        lines = [f"does not fit {listed(networks)}"]
        lines += [
            f"  {printable(key, 120)}: changes a layer of shape {found}, expected {expected}"
            for key, (expected, found) in list(self.shapes.items())[:5]
        ]
        if len(self.shapes) > 5:
            lines.append(f"  and {len(self.shapes) - 5} more shapes differ")
        if unmatched:
            named = (f"{key} (nearest: {near})" if near else key for key, near in unmatched.items())
            lines.append(f"  {len(unmatched)} keys belong to no layer: {listed(named)}")
        super().__init__(path, "\n".join(lines), remedy)


class ModelNotLoaded(DiffSynthError, LookupError):
    """A network that a lookup or a pipeline needs is not loaded.

    Args:
        wanted: what was asked for.
        loaded: labels of what is loaded.
        remedy: what to do, a sentence, or empty.
    """

    def __init__(self, wanted: str, loaded: Sequence[str] = (), remedy: str = "") -> None:
        have = f"loaded are: {listed(loaded, 10)}" if loaded else "nothing is loaded"
        super().__init__(f"not loaded: {wanted}; {have}." + (f" {remedy}" if remedy else ""))


class AmbiguousModel(DiffSynthError, LookupError):
    """A lookup fits more than one loaded network, and none is taken silently.

    Args:
        wanted: what was asked for.
        candidates: labels of the networks that fit.
    """

    def __init__(self, wanted: str, candidates: Sequence[str]) -> None:
        super().__init__(
            f"{wanted} fits {len(candidates)} loaded networks: {listed(candidates, 10)}. "
            "Name one of them, by its file or folder or by its number (variant= of fetch_model; denoiser=, clip=, "
            "clip_2=, t5=, vae=, refiner=, ip_adapter= or image_encoder= of a pipeline; --denoiser and so on), or "
            "release the others."
        )


class TokenizerNotFound(DiffSynthError, LookupError):
    """The vocabulary of a text encoder was found nowhere.

    Args:
        wanted: the tokenizer, for the message.
        looked: every place that was tried.
        remedy: what to do, a sentence.
    """

    def __init__(self, wanted: str, looked: Sequence[str], remedy: str) -> None:
        places = "".join(f"\n  {printable(place, 300)}" for place in looked)
        super().__init__(f"no {wanted} was found. Looked for:{places}\n{remedy}")


class DownloadError(DiffSynthError):
    """Files could not be fetched, or are not those that were asked for."""


class InvalidRequest(DiffSynthError, ValueError):
    """A setting is unknown, out of range, or contradicts another."""


class NonFiniteResult(DiffSynthError, ArithmeticError):
    """NaN or infinity came out of a network, so there is no image to save.

    Args:
        stage: where it happened, for example "denoising, step 3 of 20".
        remedy: what to do, a sentence.
    """

    def __init__(self, stage: str, remedy: str) -> None:
        self.stage = stage
        super().__init__(f"not a finite number in {stage}. {remedy}")


class Paused(DiffSynthError):
    """A batch stopped because the disk is full or broken, or nothing succeeds; it goes on when it is run again."""


class DeviceLost(Paused):
    """An accelerator failed in such a way that this process cannot use it any more; no image is to blame."""


class Cancelled(DiffSynthError):
    """The caller asked to stop; raise it from a step callback to stop an image at that step."""

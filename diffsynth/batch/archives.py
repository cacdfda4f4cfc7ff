"""Images in tar archives, in the manner of WebDataset: for each image 000123-7.png and 000123-7.json side by side.

One archive per unit, published whole. Its name is the hash of what is in it, so images that are drawn later, because
they failed at first, make an archive of their own.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from PIL import Image
from typing_extensions import override

from diffsynth.batch.images import KEY, encoded
from diffsynth.batch.jobs import Problems
from diffsynth.batch.ledger import Finished
from diffsynth.batch.names import folded
from diffsynth.batch.output import NameTaken, Output, Published
from diffsynth.batch.plan import Item, Plan
from diffsynth.batch.storage import Storage
from diffsynth.errors import printable
from diffsynth.pipelines.recipe import recipe_json


class Archives(Output):
    """Keeps the images of a unit until it ends, then publishes them as one archive."""

    def __init__(self, storage: Storage, quality: int) -> None:
        super().__init__(storage, quality)
        self._waiting: list[tuple[Item, Mapping[str, Any], bytes, str]] = []
        self._there = lru_cache(maxsize=None)(self._is_there)
        self._unknown: dict[str, Finished] | None = None

    @override
    def check(self, plan: Plan) -> None:
        """Refuse names that differ in their endings only: the JSON of both would have one name."""
        taken: dict[str, str] = {}
        problems = Problems()
        for name in (item.names[0] for item in plan.items):
            other = taken.setdefault(folded(_side(name)), name)
            if other != name:
                problems.add(
                    printable(name), f"its JSON would have the name of that of {printable(other)}; give another name."
                )
        problems.refuse("the job cannot be drawn into archives")

    @override
    def add(self, item: Item, image: Image.Image, facts: Mapping[str, Any]) -> list[Published]:
        content = encoded(image, item.key, item.names[0], self.quality)
        recipe = json.dumps({**(recipe_json(image) or {}), KEY: item.key}, indent=1)
        self._waiting.append((item, facts, content, recipe))
        return []

    @override
    def end_unit(self) -> list[Published]:
        if not self._waiting:
            return []
        waiting, self._waiting = self._waiting, []
        content = _archive([(item.names[0], image, recipe) for item, _, image, recipe in waiting])
        digest = hashlib.sha256(content).hexdigest()
        name = _named_after(item.key for item, *_ in waiting)
        (created,) = self.storage.create(content, [name])
        if not created and self.storage.digest(name) != digest:
            raise NameTaken(self.storage.where(name))
        file = self.storage.finished([name], digest)
        return [
            Published(item, file, {**facts, "member": item.names[0], "wanted_as": item.names[1:]})
            for item, facts, *_ in waiting
        ]

    @override
    def find(self, item: Item, known: Sequence[Finished], *, verify: bool) -> list[Finished] | None:
        if any(self._there(file, verify) for file in known):
            return []
        if self._unknown is None:
            noted = self._noted()
            names = [name for name in self.storage.glob("*.tar") if name not in noted]
            self._unknown = {key: file for name in names for key, file in self._keys_in(name)}
        found = self._unknown.get(item.key)
        return None if found is None else [found]

    def _noted(self) -> set[str]:
        """Return the archives of which ledgers tell all; their names say so."""
        keys: dict[str, list[str]] = {}
        for key, files in self.history.finished.items():
            for name in {file.files[0] for file in files}:
                keys.setdefault(name, []).append(key)
        return {name for name, found in keys.items() if name == _named_after(found)}

    def _is_there(self, file: Finished, verify: bool) -> bool:
        return file.files[0].endswith(".tar") and self.is_there(file, verify=verify)

    def _keys_in(self, name: str) -> list[tuple[str, Finished]]:
        """Return the keys of the images in an archive; none, if it is no archive of ours."""
        file = self.storage.finished([name], self.storage.digest(name))
        keys = []
        try:
            with self.storage.open(name) as stream, tarfile.open(fileobj=stream) as tar:
                for member in tar:
                    if member.name.endswith(".json") and (recipe := tar.extractfile(member)) is not None:
                        keys.append(str(json.load(recipe)[KEY]))
        except (tarfile.TarError, ValueError, LookupError, TypeError, RecursionError):
            return []
        return [(key, file) for key in keys]


def _named_after(keys: Iterable[str]) -> str:
    return hashlib.sha256("".join(keys).encode()).hexdigest()[:16] + ".tar"


def _archive(members: Sequence[tuple[str, bytes, str]]) -> bytes:
    """Return an archive; equal members give equal bytes, whenever and wherever it is made."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, image, recipe in members:
            for member, content in ((name, image), (_side(name), recipe.encode())):
                info = tarfile.TarInfo(member)  # owner 0, time 0
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _side(name: str) -> str:
    """Return the name of the JSON beside an image."""
    return name[: name.rindex(".")] + ".json"

"""Batches → images: texts, latents, pixels; what fails together is drawn in halves, and only what fails alone fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from diffsynth.batch.plan import Group, Item, Unit
from diffsynth.batch.progress import OnStep, Progress, nobody
from diffsynth.batch.text_store import TextStore
from diffsynth.core.placement import free_memory
from diffsynth.errors import Cancelled, CheckpointError, DeviceLost, DiffSynthError, printable
from diffsynth.pipelines.base import ImagePipeline
from diffsynth.pipelines.monitor import Monitor
from diffsynth.pipelines.texts import Texts

logger = logging.getLogger(__name__)

ENDS_THE_RUN = (Cancelled, CheckpointError)  # the rest is the failure of an image, and the others go on
FAILURES = (DiffSynthError, RuntimeError, MemoryError, ValueError, TypeError, LookupError, ArithmeticError, OSError)
NO_MEMORY = "out of memory"


@dataclass(frozen=True)
class Outcome:
    """What became of one image.

    Args:
        item: which one.
        image: what was drawn, or None.
        reason: why it was not.
        facts: how it was drawn, for the ledger: ``rows`` drawn together, ``seconds`` for this one, perhaps a ``note``.
    """

    item: Item
    image: Image.Image | None
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Drawer:
    """Draws batches with a pipeline.

    Args:
        pipe: what draws.
        progress: what ``on_step`` is told between two images.
        on_step: called at every step and between images; what it raises ends the run.
    """

    pipe: ImagePipeline[Any]
    progress: Progress
    on_step: OnStep = nobody
    _enough_memory_for: dict[str, int] = field(default_factory=dict)  # group → images drawn together
    _unread: dict[str, str] = field(default_factory=dict)  # key of an image → why its texts were not encoded

    def encode(self, unit: Unit, skip: Collection[str], texts: Texts) -> Texts:
        """Return texts with those of a unit, kept in the memory of the CPU; what cannot be encoded is left out.

        Args:
            unit: its batches without any image to draw need no texts.
            skip: keys of images that are not drawn.
            texts: known ones.
        """
        for batch in unit.batches():
            if all(item.key in skip for item in batch):
                continue
            self.on_step(self.progress)
            try:
                texts = self._with_texts(texts, self._requests(unit.group, batch))
            except ENDS_THE_RUN:
                raise
            except FAILURES as error:
                logger.debug("texts are left for later: %s", error)  # the drawing of these images will tell
        return texts

    def keep(self, unit: Unit, skip: Collection[str], store: TextStore) -> None:
        """Encode the texts of a unit into a store; where one cannot be, its image fails when it is to be drawn.

        Args:
            unit: its batches without any image to draw need no texts.
            skip: keys of images that are not drawn.
            store: gets the features, and has those of other units.

        Raises:
            OSError: the store's disk is full.
        """
        for batch in unit.batches():
            if all(item.key in skip for item in batch):
                continue
            self.on_step(self.progress)
            for item in batch:
                found = self._encoded(unit.group, item, store)
                if isinstance(found, str):
                    self._unread[item.key] = found
                else:
                    store.add(found)

    def _encoded(self, group: Group, item: Item, store: TextStore, *, again: bool = True) -> Texts | str:
        """Return the features of an image's texts that a store does not have, or why there are none."""
        try:
            return self.pipe.encode_texts(self._requests(group, (item,)), Texts(store))
        except ENDS_THE_RUN:
            raise
        except FAILURES as error:
            reason = _reason(error)
        if reason != NO_MEMORY or not again:
            return reason
        free_memory(self.pipe.device)
        return self._encoded(group, item, store, again=False)

    def draw(
        self, group: Group, batch: Sequence[Item], skip: Collection[str], texts: Texts, note: str = ""
    ) -> Iterator[Outcome]:
        """Draw images together and yield each as soon as it is decoded.

        Args:
            group: what they have in common.
            batch: all that the plan draws together, so that the bytes are always the same.
            skip: keys of those that are there already, and so are neither decoded nor yielded.
            texts: features of their texts; missing ones are encoded.
            note: why they are not drawn in the batch that was planned.
        """
        if all(item.key in skip for item in batch):
            return
        most = self._enough_memory_for.get(group.digest, len(batch))
        reason = NO_MEMORY if len(batch) > most else self._why_unread(batch)
        started = time.perf_counter()
        if not reason:
            try:
                requests = self._requests(group, batch)
                texts = self._with_texts(texts, requests)
                latents = self.pipe.draw_latents(requests, texts, Monitor(iter, callback=self.on_step))
            except ENDS_THE_RUN:
                raise
            except FAILURES as error:
                reason = _reason(error)
        if not reason:
            facts = {"rows": len(batch), **({"note": note} if note else {})}
            seconds = (time.perf_counter() - started) / len(batch)
            for row, item in enumerate(batch):
                if item.key not in skip:
                    yield self._decoded(item, requests[row], latents[row : row + 1], {**facts, "seconds": seconds})
            return
        if reason == NO_MEMORY:
            free_memory(self.pipe.device)
        if len(batch) == 1:
            yield Outcome(batch[0], None, reason)
            return
        half = (len(batch) + 1) // 2
        if reason == NO_MEMORY:
            self._enough_memory_for[group.digest] = min(most, half)
        note = note or f"not drawn in its batch of {len(batch)}: {reason}"
        for part in (batch[:half], batch[half:]):
            yield from self.draw(group, part, skip, texts, note)

    def _why_unread(self, batch: Sequence[Item]) -> str:
        return next((self._unread[item.key] for item in batch if item.key in self._unread), "")

    def _requests(self, group: Group, batch: Sequence[Item]) -> list[Any]:
        return self.pipe.prepare([group.request(self.pipe, item) for item in batch])

    def _with_texts(self, texts: Texts, requests: Sequence[Any]) -> Texts:
        return texts.with_more(self.pipe.encode_texts(requests, texts).to("cpu"))

    def _decoded(self, item: Item, request: Any, latents: torch.Tensor, facts: dict[str, Any]) -> Outcome:
        self.on_step(self.progress)
        started = time.perf_counter()
        try:
            (image,) = self.pipe.decode([request], latents)
        except ENDS_THE_RUN:
            raise
        except FAILURES as error:
            return Outcome(item, None, _reason(error))
        facts["seconds"] = round(facts["seconds"] + time.perf_counter() - started, 3)
        return Outcome(item, image, facts=facts)


def _reason(error: BaseException) -> str:
    """Return why an image failed.

    Raises:
        DeviceLost: it is not the image's fault, and every further one would fail too.
    """
    failed = isinstance(error, torch.AcceleratorError)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
        return NO_MEMORY
    if failed and "out of memory" in str(error):
        return NO_MEMORY
    if failed:
        why = printable(str(error).partition("\n")[0], 300)
        raise DeviceLost(
            f"the accelerator failed, and this process cannot use it any more: {why}. What is finished is kept, and "
            "the same command goes on from here; if an image does so every time, --workers will find it and go on."
        ) from error
    return f"{type(error).__name__}: {printable(error, 1000)}"

"""What a job costs, in lines: ``diffsynth batch --dry-run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffsynth.batch.cost import Estimate


def costs(pipe: Any, plan: Any, gpus: int | None, tflops: float | None, *, low_memory: bool = False) -> list[str]:
    """Return what a job costs, in lines; one batch of it is drawn for the time."""
    from diffsynth.batch.cost import Estimate

    estimate = Estimate(pipe, plan, low_memory=low_memory)
    images, whole = len(plan.items), estimate.operations
    parts = {"texts": estimate.reading, "denoising": estimate.denoising, "decoding": estimate.decoding}
    shares = ", ".join(f"{name} {100 * part / whole:.1f} %" for name, part in parts.items())
    sample = estimate.measure()
    rates = f"denoising {sample.denoise / 1e12:.3g} TFLOP/s, decoding {sample.decode / 1e12:.3g} TFLOP/s"
    lines = [
        f"images      {images}, and {plan.entries - images} that are the same as others",
        f"texts       {estimate.texts} distinct",
        f"groups      {len(plan.groups)}, in {len(plan.units)} units",
        f"operations  {whole / 1e12:.4g} TFLOP: {shares}",
        f"weights     {size(estimate.weights)}, of which text encoders {size(estimate.text_weights)}",
        *_memory(estimate),
        f"sample      the first batch took {sample.seconds:.3g} s: {sample.text:.3g} s a text, {rates}",
        f"time        {duration(estimate.seconds(sample))} here",
    ]
    if gpus or tflops:
        sustained = tflops * 1e12 if tflops else whole / estimate.seconds(sample)
        source = "as given" if tflops else "as measured here"
        seconds = whole / sustained
        batches = sum(len(list(unit.batches())) for unit in plan.units)
        busy = max(1, min(gpus or 1, batches))
        few = f"; only {batches} have work, for there are no more batches" if busy < (gpus or 1) else ""
        lines += [
            f"devices     {gpus or 1} of {sustained / 1e12:.3g} TFLOP/s, {source}{few}",
            f"            {seconds / max(images, 1):.3g} s an image, {duration(seconds / busy)} in all, "
            f"{seconds / 3600:.3g} device-hours, {images * busy / seconds:.3g} images a second",
        ]
    return lines


def _memory(estimate: Estimate) -> list[str]:
    """Return what each stage needs, and all of them."""
    stages = estimate.memory
    peak = max(stage.total for stage in stages.values())
    mode = "with --low-memory" if estimate.low_memory else "without --low-memory"
    lines = [
        f"{'' if number else 'memory':<12}{name:<10} {size(stage.total)}: weights {size(stage.weights)}, "
        f"activations {size(stage.activations)}"
        for number, (name, stage) in enumerate(stages.items())
    ]
    return [
        *lines,
        f"            at most    {size(peak)} {mode}, and {size(estimate.kept)} of text features on the CPU",
    ]


def size(nbytes: float) -> str:
    """Return a number of bytes in words: 8.9 GB, 710 MB, 12 KB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.3g} {name}"
    return f"{nbytes / 1e3:.3g} KB"


def duration(seconds: float) -> str:
    """Return a time in words: 45 s, 12 min, 3 h 20 min, 6.7 days."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{seconds / 86400:.1f} days"

"""Folders of images as runs leave them, written without any network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

SETTINGS: dict[str, Any] = {
    "prompt": "a fox",
    "seed": 1,
    "cfg_scale": 5.0,
    "height": 16,
    "width": 24,
    "scheduler": "ddim",
}


def recipe_of(request: dict[str, Any], **more: Any) -> dict[str, Any]:
    file = {"path": "/models/dit.pt", "sha256": "1" * 64}
    network = {"family": "hunyuan_dit", "path": "/models/dit.pt", "dtype": "float32", "device": "cpu", "files": [file]}
    facts = {"version": 1, "diffsynth": "0.1.0", "torch": "2.13.0", "pipeline": "HunyuanDiTImagePipeline"}
    return {**facts, "models": [network], "request": request, **more}


def write_image(path: Path, request: dict[str, Any], color: str = "red", **more: Any) -> None:
    """Write a picture of one colour with a recipe."""
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = PngInfo()
    chunks.add_itxt("diffsynth", json.dumps(recipe_of(request, **more)))
    Image.new("RGB", (request["width"], request["height"]), color).save(path, pnginfo=chunks)


class Written:
    """Writes a folder of a run line by line.

    Args:
        folder: made if need be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lines: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.line({"run": {"time": "2026-01-02T03:04:05+00:00", "device": "cpu"}})

    def line(self, content: dict[str, Any]) -> None:
        """Add a line to the ledger."""
        self._lines.append(content)
        text = "".join(json.dumps(line) + "\n" for line in self._lines)
        (self.folder / "ledger.jsonl").write_text(text, "utf-8")

    def drawn(self, name: str, *, color: str = "red", second: int = 6, **settings: Any) -> str:
        """Add an image and return its key."""
        request, key = {**SETTINGS, **settings}, f"{len(self._lines):064d}"
        write_image(self.folder / name, request, color, key=key)
        facts = {"sha256": "2" * 64, "size": 1, "mtime_ns": 1, "rows": 1, "seconds": 1.0}
        self.line(
            {"key": key, "files": [name], **facts, "time": f"2026-01-02T03:04:{second:02d}+00:00", "request": request}
        )
        return key

    def failed(self, name: str, reason: str, **settings: Any) -> None:
        """Add a failure."""
        key, time = f"{len(self._lines):064d}", "2026-01-02T03:04:07+00:00"
        self.line({"key": key, "failed": reason, "files": [name], "time": time, "request": {**SETTINGS, **settings}})

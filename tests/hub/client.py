"""A program that downloads, for tests that need a process of their own: python -m tests.hub.client FOLDER [HUB...]."""

from __future__ import annotations

import sys

from diffsynth import download_models


def main() -> None:
    """Download the model to a folder; print its files."""
    folder, *hubs = sys.argv[1:]
    for path in download_models("HunyuanDiT", hubs or ("ModelScope", "HuggingFace"), local_dir=folder):
        sys.stdout.write(f"{path}\n")
    assert "torch" not in sys.modules


if __name__ == "__main__":
    main()

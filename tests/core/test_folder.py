from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffsynth.core.folder import component_folders
from diffsynth.errors import NotACheckpoint


def test_a_name_that_is_too_long_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match="name too long"):
        component_folders(tmp_path / ("x" * 300))


def test_a_folder_that_may_not_be_read_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part").mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(13, os.strerror(13), str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)

    with pytest.raises(NotACheckpoint, match=f"{tmp_path}: cannot be opened: Permission denied"):
        component_folders(tmp_path)

"""Network disks are told from the table of mounts, and files on them are read instead of mapped."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffsynth.core import checkpoint as module
from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.core.formats.disk import on_network_disk

TABLE = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:50 / {root}/share rw,relatime shared:2 - nfs4 server:/export rw
31 30 8:2 / {root}/share/local rw,relatime - ext4 /dev/sdb1 rw
32 21 0:51 / {root}/with\\040space rw - fuse.sshfs me@there: rw
broken line
"""


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("home", False),
        ("share/models", True),
        ("share/local/models", False),
        ("with space", True),
        ("sharepoint", False),
    ],
)
def test_the_innermost_mount_decides(place: str, expected: bool, tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(TABLE.format(root=tmp_path.resolve()))

    assert on_network_disk(tmp_path / place / "model.safetensors", mounts) is expected


def test_a_system_without_a_table_has_no_network_disks(tmp_path: Path) -> None:
    assert not on_network_disk(tmp_path, tmp_path / "absent")


def test_a_file_on_a_network_disk_is_not_mapped_unless_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": torch.ones(3)}, tmp_path / "a.safetensors")
    monkeypatch.setattr(module, "on_network_disk", lambda path: True)

    by_itself = open_checkpoint(tmp_path / "a.safetensors")
    asked = open_checkpoint(tmp_path / "a.safetensors", mmap=True)

    assert torch.equal(by_itself["a"], torch.ones(3))
    assert torch.equal(asked["a"], torch.ones(3))
    assert (by_itself.mapped, asked.mapped) == (False, True)

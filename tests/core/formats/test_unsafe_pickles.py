"""Pickles that would run code: each of them makes a folder when it is really unpickled, and none does here."""

from __future__ import annotations

import collections
import copyreg
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import diffsynth
from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.errors import CheckpointError, UnsafeCheckpoint, UnsupportedCheckpoint
from tests.core.formats.forged_files import MAGIC, Call, View, legacy_file, pickled, zip_file

PACKAGE = Path(next(iter(diffsynth.__path__)))


def _text(marker: Path) -> bytes:
    """The operation that pushes the marker's path."""
    return b"X" + struct.pack("<I", len(os.fsencode(marker))) + os.fsencode(marker)


PROGRAMS: dict[str, Callable[[Path], bytes]] = {
    "REDUCE": lambda marker: b"\x80\x02cos\nmkdir\n" + _text(marker) + b"\x85R.",
    "REDUCE through the memo": lambda marker: b"\x80\x02cos\nmkdir\nq\x000h\x00" + _text(marker) + b"\x85R.",
    "STACK_GLOBAL": lambda marker: b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + _text(marker) + b"\x85R.",
    "INST": lambda marker: b"\x80\x02(" + _text(marker) + b"ios\nmkdir\n.",
    "OBJ": lambda marker: b"\x80\x02(cos\nmkdir\n" + _text(marker) + b"o.",
    "a discarded call": lambda marker: b"\x80\x02cos\nmkdir\n" + _text(marker) + b"\x85R0}.",
    "in a list": lambda marker: b"\x80\x02]cos\nmkdir\n" + _text(marker) + b"\x85Ra.",
    "in a wrapper": lambda marker: pickled({"state_dict": {"w": View(), "x": Call(os.mkdir, str(marker))}}),
    "as an argument of a tensor": lambda marker: pickled({"w": View(None, Call(os.mkdir, str(marker)))}),
    "as the attributes of a dict": lambda marker: pickled(
        Call(collections.OrderedDict, [["w", Call(os.mkdir, str(marker))]])
    ),
    "protocol 0": lambda marker: b"cos\nmkdir\n(V" + os.fsencode(marker) + b"\ntR.",
    "protocol 0, INST": lambda marker: b"(V" + os.fsencode(marker) + b"\nios\nmkdir\n.",
    "EXT1": lambda marker: b"\x80\x02\x82\xf0" + _text(marker) + b"\x85R.",
    "EXT4": lambda marker: b"\x80\x02\x84\xf0\0\0\0" + _text(marker) + b"\x85R.",
    "NEWOBJ": lambda marker: b"\x80\x02cos\nmkdir\n" + _text(marker) + b"\x85\x81.",
    "NEWOBJ_EX": lambda marker: b"\x80\x04\x8c\x02os\x8c\x05mkdir\x93" + _text(marker) + b"\x85}\x92.",
    "BUILD": lambda marker: b"\x80\x02cos\nmkdir\n}X\x01\0\0\0aK\x01sb.",
    "a storage's bytes as a pickle": lambda marker: (
        b"\x80\x02ctorch.storage\n_load_from_bytes\nC\x05abcde\x85R."
    ),
}  # fmt: skip
RUN_NOTHING_WHEN_UNPICKLED = {
    "NEWOBJ", "NEWOBJ_EX", "BUILD", "a storage's bytes as a pickle", "in a wrapper", "as an argument of a tensor",
}  # fmt: skip

PLACES: dict[str, Callable[[Path, bytes], object]] = {
    "raw": lambda path, program: path.write_bytes(program),
    "zip": zip_file,
    "legacy body": legacy_file,
    "legacy head": lambda path, program: legacy_file(path, {"w": View()}, head=program),
    "legacy keys": lambda path, program: legacy_file(path, {"w": View()}, keys=program),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_in_a_pickle_is_named_and_not_run(program: str, place: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "it ran", tmp_path / "model.pt"
    PLACES[place](path, PROGRAMS[program](marker))

    with pytest.raises(UnsafeCheckpoint) as caught:
        open_checkpoint(path)

    assert not marker.exists()
    named = next(
        name for name in ("mkdir", "extension 240", "__setstate__", "_load_from_bytes") if name in str(caught.value)
    )
    assert named
    assert str(caught.value).startswith(f"{path}: is a pickle that calls ")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("program", sorted(PROGRAMS.keys() - RUN_NOTHING_WHEN_UNPICKLED))
def test_these_programs_do_run_when_unpickled(program: str, tmp_path: Path) -> None:
    """Otherwise the test above would show nothing."""
    marker = tmp_path / "it ran"
    if program.startswith("EXT"):
        copyreg.add_extension("os", "mkdir", 240)
    try:
        pickle.loads(PROGRAMS[program](marker))
    except pickle.UnpicklingError:
        pass
    finally:
        if program.startswith("EXT"):
            copyreg.remove_extension("os", "mkdir", 240)

    assert marker.exists()


def test_a_wrong_checksum_or_an_encrypted_mark_does_not_open_a_door(tmp_path: Path) -> None:
    marker, path = tmp_path / "it ran", tmp_path / "model.pt"
    data = bytearray(zip_file(path, PROGRAMS["REDUCE"](marker)).read_bytes())
    for local, central, kind in ((14, 16, UnsafeCheckpoint), (6, 8, UnsupportedCheckpoint)):  # checksum; flags
        changed = bytearray(data)
        changed[local] ^= 1
        changed[data.index(b"PK\x01\x02") + central] ^= 1
        path.write_bytes(changed)

        with pytest.raises(kind):
            open_checkpoint(path)

    assert not marker.exists()


def test_an_old_tar_of_pickles_is_refused_unread(tmp_path: Path) -> None:
    marker, path = tmp_path / "it ran", tmp_path / "model.pt"
    (tmp_path / "pickle").write_bytes(PROGRAMS["REDUCE"](marker))
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "pickle", "sys_info")

    with pytest.raises(UnsupportedCheckpoint, match="tar archive"):
        open_checkpoint(path)

    assert not marker.exists()


def test_a_global_that_is_named_but_not_called_is_only_two_words(tmp_path: Path) -> None:
    path = zip_file(tmp_path / "model.pt", {"w": View(), "loss": os.mkdir, "optimizer": torch.optim.Adam})

    assert list(open_checkpoint(path)) == ["w"]


@pytest.mark.parametrize("new_format", [True, False])
def test_a_whole_module_is_refused_with_the_way_to_convert_it(new_format: bool, tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt", _use_new_zipfile_serialization=new_format)

    with pytest.raises(UnsupportedCheckpoint, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict\(\)"):
        open_checkpoint(tmp_path / "module.pt")


def test_nothing_in_the_package_unpickles() -> None:
    sources = {file: file.read_text() for file in PACKAGE.rglob("*.py")}

    for words in ("torch.load(", "import pickle\n", "pickle.load", "Unpickler", "weights_only=False"):
        assert [file for file, text in sources.items() if words in text] == []


def test_the_error_is_of_one_family(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(PROGRAMS["REDUCE"](tmp_path / "it ran"))

    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "model")
    assert isinstance(caught.value, ValueError)


def test_the_magic_number_is_that_of_torch() -> None:
    assert torch.serialization.MAGIC_NUMBER == MAGIC


def test_a_member_of_the_archive_that_is_no_storage_is_never_read(tmp_path: Path) -> None:
    marker = tmp_path / "it ran"
    path = zip_file(tmp_path / "model.pt", {"w": View()}, more={"archive/extra.pkl": PROGRAMS["REDUCE"](marker)})

    assert len(open_checkpoint(path)) == 1
    assert not marker.exists()
    assert zipfile.is_zipfile(path)

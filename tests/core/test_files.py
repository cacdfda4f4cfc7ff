from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

import pytest

from diffsynth.core.files import replacing


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "file.bin"

    with replacing(path) as temporary:
        temporary.write_bytes(b"weights")
        assert not path.exists()
        assert temporary.parent == path.parent

    assert path.read_bytes() == b"weights"
    assert list(path.parent.iterdir()) == [path]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    with suppress(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_bytes(b"half of the n")
        raise KeyboardInterrupt

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    with pytest.raises(FileNotFoundError), replacing(path):
        pass

    assert path.read_bytes() == b"old"


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file.bin").mkdir()

    with pytest.raises(OSError, match=r"file\.bin"), replacing(tmp_path / "file.bin") as temporary:
        temporary.write_bytes(b"weights")

    assert [path.name for path in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize("name", ["x" * 255, "獾" * 85], ids=["long", "long chinese"])
def test_any_name_that_the_disk_takes_can_be_written(name: str, tmp_path: Path) -> None:
    with replacing(tmp_path / name) as temporary:
        temporary.write_bytes(b"weights")

    assert (tmp_path / name).read_bytes() == b"weights"


def test_two_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"

    with replacing(path) as one, replacing(path) as two:
        one.write_bytes(b"one")
        two.write_bytes(b"two")

    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]


def test_the_file_has_the_rights_of_any_new_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")

    with replacing(tmp_path / "file.bin") as temporary:
        temporary.write_bytes(b"weights")

    assert stat.S_IMODE(os.stat(tmp_path / "file.bin").st_mode) == stat.S_IMODE(os.stat(plain).st_mode)


def test_an_error_names_the_file_and_not_its_temporary_name(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"

    for error in (OSError(28, "No space left on device"), OSError(5, "Input/output error", None)):
        with pytest.raises(OSError, match=f"{error.strerror}.*{path}") as raised, replacing(path):
            raise error
        assert raised.value.filename == str(path)
    with pytest.raises(FileNotFoundError) as caught, replacing(path):
        pass
    assert ".part" not in str(caught.value)
    with pytest.raises(OSError, match="another"), replacing(path):
        raise OSError(5, "Input/output error", "another")


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    with pytest.raises(FileExistsError, match=r"no regular file.*pipe"), replacing(tmp_path / "pipe"):
        pytest.fail("the block was entered")

    assert (tmp_path / "pipe").is_fifo()

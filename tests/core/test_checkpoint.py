from __future__ import annotations

import collections
import gc
import logging
import mmap
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffsynth.core.checkpoint import Checkpoint, open_checkpoint
from diffsynth.core.formats import reader
from diffsynth.errors import CorruptCheckpoint, NotACheckpoint
from diffsynth.types import TensorSpec

Save = Callable[[Mapping[str, Tensor], Path], None]


def save_zip(tensors: Mapping[str, Tensor], path: Path) -> None:
    torch.save(tensors, path)


def save_legacy(tensors: Mapping[str, Tensor], path: Path) -> None:
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def save_safetensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({key: tensor.detach().clone().contiguous() for key, tensor in tensors.items()}, path)


SAVERS: dict[str, Save] = {"torch zip": save_zip, "torch legacy": save_legacy, "safetensors": save_safetensors}
each_format = pytest.mark.parametrize("form", SAVERS)

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e4m3fnuz,
    torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64,
)  # fmt: skip


def bits(tensor: Tensor) -> list[int]:
    """The bytes of a tensor in the order of its elements."""
    flat: list[int] = tensor.detach().contiguous().view(-1).view(torch.uint8).tolist()
    return flat


def assert_same(checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> None:
    assert list(checkpoint) == list(tensors) or checkpoint.format.startswith("safetensors")
    assert sorted(checkpoint) == sorted(tensors)
    for key, tensor in tensors.items():
        found = checkpoint[key]
        assert (found.shape, found.dtype) == (tensor.shape, tensor.dtype), key
        assert checkpoint.header[key] == TensorSpec(tuple(tensor.shape), tensor.dtype)
        assert bits(found) == bits(tensor), key
        assert type(found) is Tensor
        assert not found.requires_grad


@each_format
@pytest.mark.parametrize("mmap", [True, False])
def test_every_dtype_survives_its_file_bit_for_bit(form: str, mmap: bool, tmp_path: Path) -> None:
    raw = torch.randint(0, 256, (48,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tensors = {
        str(dtype): (raw % 2 if dtype is torch.bool else raw.clone()).view(dtype).view(3, -1) for dtype in DTYPES
    }
    SAVERS[form](tensors, tmp_path / "model")

    checkpoint = open_checkpoint(tmp_path / "model", mmap=mmap)

    assert_same(checkpoint, tensors)
    assert checkpoint.format == form


@each_format
@pytest.mark.parametrize("mmap", [True, False])
def test_every_form_of_tensor_survives_its_file(form: str, mmap: bool, tmp_path: Path) -> None:
    base = torch.arange(24.0).view(4, 6)
    tensors = {
        "plain": base,
        "same": base,
        "row": base[2],
        "column": base[:, 3],
        "transposed": base.t(),
        "every other": base[::2, 1::2],
        "number": torch.tensor(3.5),
        "empty": torch.zeros(0, 3),
        "one": torch.zeros(1, 1, 1),
        "parameter": nn.Parameter(torch.ones(2)),
        "buffer": nn.Parameter(torch.ones(2), requires_grad=False),
        "needs grad": torch.ones(2, requires_grad=True),
        "channels last": torch.arange(48.0).view(1, 3, 4, 4).to(memory_format=torch.channels_last),
        "层.权重": torch.ones(1),
    }
    tensors["with an attribute"] = torch.ones(2)
    tensors["with an attribute"].note = "kept by pickle"  # type: ignore[attr-defined]
    SAVERS[form](tensors, tmp_path / "model")

    assert_same(open_checkpoint(tmp_path / "model", mmap=mmap), tensors)


@each_format
def test_the_state_of_a_module_survives_its_file(form: str, tmp_path: Path) -> None:
    """It is an ordered dict with an attribute, the versions of its layers."""
    state = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).state_dict()
    assert isinstance(state, collections.OrderedDict)
    SAVERS[form](state, tmp_path / "model")

    assert_same(open_checkpoint(tmp_path / "model"), state)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("new_format", [True, False])
def test_every_pickle_protocol_loads(protocol: int, new_format: bool, tmp_path: Path) -> None:
    tensors = {"a": torch.arange(5.0), "b": torch.ones(2).to(torch.float8_e5m2)}
    torch.save(tensors, tmp_path / "m", pickle_protocol=protocol, _use_new_zipfile_serialization=new_format)

    assert_same(open_checkpoint(tmp_path / "m"), tensors)


def test_an_archive_without_checksums_loads(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(5.0)}, tmp_path / "model")
    finally:
        torch.serialization.set_crc32_options(True)

    assert open_checkpoint(tmp_path / "model")["a"].tolist() == [0, 1, 2, 3, 4]


def test_a_checkpoint_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, path)

    checkpoint = open_checkpoint(str(path))

    assert checkpoint.path == path
    assert checkpoint.files == (path,)
    assert checkpoint.format == "torch zip"
    assert checkpoint.wrapper == "state_dict"
    assert checkpoint.metadata == {}
    assert checkpoint.nbytes == path.stat().st_size
    assert len(checkpoint) == 1
    assert "a" in checkpoint
    assert "b" not in checkpoint
    assert repr(checkpoint) == f"Checkpoint({path}, torch zip, 1 tensors)"
    assert checkpoint != open_checkpoint(path)
    assert len({checkpoint, checkpoint}) == 1
    with pytest.raises(KeyError):
        checkpoint["b"]
    with pytest.raises(TypeError):
        checkpoint.header["b"] = checkpoint.header["a"]  # type: ignore[index]


@each_format
def test_opening_reads_the_header_only(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    SAVERS[form]({f"{index}": torch.ones(4) for index in range(50)}, tmp_path / "model")

    def refuse(*_: object) -> Tensor:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(reader.BytesReader, "read", refuse)

    assert len(open_checkpoint(tmp_path / "model").header) == 50


@each_format
def test_writing_into_a_tensor_does_not_change_the_file(form: str, tmp_path: Path) -> None:
    SAVERS[form]({"a": torch.ones(4096), "b": torch.ones(2)}, tmp_path / "model")
    before = (tmp_path / "model").read_bytes()
    checkpoint = open_checkpoint(tmp_path / "model")

    checkpoint["a"].zero_()

    assert (tmp_path / "model").read_bytes() == before
    assert open_checkpoint(tmp_path / "model")["a"].sum() == 4096


@each_format
def test_a_tensor_outlives_its_checkpoint(form: str, tmp_path: Path) -> None:
    SAVERS[form]({"a": torch.arange(1000.0)}, tmp_path / "model")

    tensor = open_checkpoint(tmp_path / "model")["a"]
    gc.collect()
    (tmp_path / "model").unlink()

    assert torch.equal(tensor, torch.arange(1000.0))


def resident(path: Path) -> int:
    """Bytes of a file's mappings that are in the memory of this process."""
    total, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0] and ":" not in line.split(" ")[0]:
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_forgetting_gives_memory_back_and_keeps_the_neighbours(tmp_path: Path) -> None:
    path = tmp_path / "model"
    tensors = {"a": torch.ones(3), "big": torch.rand(500_000), "z": torch.full((3,), 2.0)}
    save_file(tensors, path)
    checkpoint = open_checkpoint(path)
    checkpoint["a"].mul_(5)
    assert checkpoint["big"].sum() > 0
    assert resident(path) > 1_900_000

    checkpoint.forget("big")

    assert resident(path) < 200_000
    assert checkpoint["a"].tolist() == [5, 5, 5]
    assert torch.equal(checkpoint["big"], tensors["big"])
    with pytest.raises(KeyError):
        checkpoint.forget("absent")


def test_forgetting_does_nothing_without_a_mapping(tmp_path: Path) -> None:
    save_file({"a": torch.ones(5000)}, tmp_path / "model")

    for mapped in (True, False):
        checkpoint = open_checkpoint(tmp_path / "model", mmap=mapped)
        checkpoint.forget("a")
        assert checkpoint["a"].sum() == 5000


def test_a_file_that_cannot_be_mapped_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_file({"a": torch.arange(3.0)}, tmp_path / "model")

    def refuse(*_: object, **__: object) -> mmap.mmap:
        raise OSError(19, "No such device")

    monkeypatch.setattr(mmap, "mmap", refuse)

    with caplog.at_level(logging.INFO):
        assert open_checkpoint(tmp_path / "model")["a"].tolist() == [0, 1, 2]
    assert "cannot be mapped (No such device), so it is read" in caplog.text


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4)


def _overwrite(path: Path) -> None:
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))


def _exchange(path: Path) -> None:
    status = path.stat()
    (path.parent / "new").write_bytes(path.read_bytes())
    os.utime(path.parent / "new", ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(path.parent / "new", path)


@pytest.mark.parametrize("change", [_cut, _overwrite, _exchange])
def test_a_file_that_changed_is_noticed(change: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_file({"a": torch.ones(4)}, path)
    used, untouched, unmapped = open_checkpoint(path), open_checkpoint(path), open_checkpoint(path, mmap=False)
    assert used["a"].sum() == 4
    used.check_unchanged()

    change(path)

    with pytest.raises(CorruptCheckpoint, match=r"model: changed while it was in use.*Load it again"):
        used.check_unchanged()
    for checkpoint in (untouched, unmapped):
        with pytest.raises(CorruptCheckpoint, match="changed while it was in use"):
            checkpoint["a"]


def test_a_file_that_is_gone_is_noticed(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4)}, tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")

    (tmp_path / "model").unlink()

    with pytest.raises(NotACheckpoint, match="No such file"):
        checkpoint.check_unchanged()
    with pytest.raises(NotACheckpoint, match="No such file"):
        checkpoint["a"]


@each_format
def test_values_that_are_not_finite_are_counted(form: str, tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    tensors = {
        "good": torch.ones(3),
        "bad": torch.tensor([nan, 1.0, inf, -inf]).bfloat16(),
        "eighths": torch.tensor([nan, 1.0]).to(torch.float8_e4m3fn),
        "complex": torch.tensor([complex(1, nan)]),
        "whole": torch.arange(3),
        "empty": torch.zeros(0),
    }
    SAVERS[form](tensors, tmp_path / "model")

    assert open_checkpoint(tmp_path / "model").nonfinite() == {"bad": 3, "eighths": 1, "complex": 1}


@pytest.mark.parametrize("new_format", [True, False])
def test_the_header_of_a_large_network_is_read_quickly(new_format: bool, tmp_path: Path) -> None:
    tensors = {f"blocks.{index}.weight": torch.zeros(8, 8) for index in range(1305)}
    torch.save(tensors, tmp_path / "model", _use_new_zipfile_serialization=new_format)
    begin = time.monotonic()

    header = open_checkpoint(tmp_path / "model").header

    assert len(header) == 1305
    assert time.monotonic() - begin < 1.5  # 0.1 s where nothing else runs


@pytest.mark.parametrize("mmap", [True, False])
def test_counting_values_keeps_what_was_written_into_tensors(mmap: bool, tmp_path: Path) -> None:
    save_file({"a": torch.full((5000,), float("nan"))}, tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model", mmap=mmap)
    tensor = checkpoint["a"]
    tensor.fill_(7)

    assert checkpoint.nonfinite() == {"a": 5000}
    assert tensor.eq(7).all()


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pth", "model.ckpt", "model.BIN"])
def test_in_the_place_of_a_pickle_that_is_not_there_its_safetensors_twin_is_read(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    twin = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4)}, twin)
    caplog.set_level(logging.INFO, "diffsynth")

    checkpoint = open_checkpoint(tmp_path / name)

    assert (checkpoint.path, checkpoint.files) == (twin, (twin,))
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / name} is not there, so {twin} is read in its place"
    ]


def test_a_pickle_that_is_there_is_read_whatever_lies_beside_it(tmp_path: Path) -> None:
    save_file({"twin": torch.ones(4)}, tmp_path / "model.safetensors")
    save_zip({"named": torch.ones(4)}, tmp_path / "model.bin")

    assert list(open_checkpoint(tmp_path / "model.bin")) == ["named"]


def test_if_neither_file_is_there_the_error_names_both(tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").write_bytes(b"")

    with pytest.raises(NotACheckpoint) as caught:
        open_checkpoint(tmp_path / "model.bin")

    assert str(caught.value) == (
        f"{tmp_path}/model.bin: cannot be opened: No such file or directory; model.safetensors is not there either. "
        "Check the path."
    )


@pytest.mark.parametrize("name", ["model", "model.json", "model.bin/", "model.safetensors.bin"])
def test_other_names_have_no_twin(name: str, tmp_path: Path) -> None:
    save_file({"a": torch.ones(4)}, tmp_path / "model.safetensors")

    with pytest.raises(NotACheckpoint, match="No such file"):
        open_checkpoint(f"{tmp_path}/{name}")

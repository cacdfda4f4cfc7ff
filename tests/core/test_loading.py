from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.core.loading import load_network
from diffsynth.core.registry import Registry
from diffsynth.errors import CorruptCheckpoint, StateDictMismatch, UnsupportedCheckpoint
from diffsynth.models import hunyuan_dit

from .small_family import family, state


def load(
    tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype | None = None, *, mmap: bool = True
) -> tuple[Any, frozenset[int]]:
    path = folder / "lamp.safetensors"
    save_file(tensors, path)
    checkpoint = open_checkpoint(path, mmap=mmap)
    (found,) = Registry([family()]).identify(checkpoint).networks
    return load_network(found, checkpoint, dtype=dtype, device=torch.device("cpu"))


def mismatch(tensors: dict[str, Tensor], folder: Path) -> StateDictMismatch:
    with pytest.raises(StateDictMismatch) as raised:
        load(tensors, folder)
    return raised.value


def test_the_network_has_the_weights_of_the_file_and_is_put_in_order_once(tmp_path: Path) -> None:
    tensors = state("a.")

    lamp, mapped = load(tensors, tmp_path)

    assert mapped
    assert lamp.finished == 1
    assert not lamp.training
    assert all(not weight.requires_grad for weight in lamp.parameters())
    assert all(torch.equal(tensor, tensors[f"a.{key}"]) for key, tensor in lamp.state_dict().items())


def test_only_numbers_with_a_point_are_converted(tmp_path: Path) -> None:
    lamp, mapped = load(state(), tmp_path, torch.bfloat16)

    assert lamp.stem.weight.dtype is torch.bfloat16
    assert lamp.count.dtype is torch.int64
    assert mapped  # the counter, which did not have to be converted


def test_tensors_that_are_joined_are_no_views_of_the_file(tmp_path: Path) -> None:
    tensors = {"root.weight": torch.randn(6, 4), "root.bias": torch.randn(6), "count": torch.tensor(3)}
    for part in ("up", "down"):
        tensors |= {f"blocks.0.{part}.weight": torch.randn(6, 6), f"blocks.0.{part}.bias": torch.randn(6)}

    lamp, _ = load(tensors, tmp_path)

    assert torch.equal(lamp.blocks[0].weight[6:], tensors["blocks.0.down.weight"])
    assert int(lamp.count) == 3


def test_what_lies_transposed_in_the_file_becomes_dense(tmp_path: Path) -> None:
    tensors = state()
    tensors["stem.weight"] = torch.randn(4, 6).t()
    torch.save(tensors, tmp_path / "lamp.bin")
    checkpoint = open_checkpoint(tmp_path / "lamp.bin")
    assert not checkpoint["stem.weight"].is_contiguous()
    (found,) = Registry([family()]).identify(checkpoint).networks

    lamp, _ = load_network(found, checkpoint, dtype=None, device=torch.device("cpu"))

    assert lamp.get_parameter("stem.weight").is_contiguous()
    assert torch.equal(lamp.get_parameter("stem.weight"), tensors["stem.weight"])


def test_missing_keys_are_named_as_the_file_would_have_them(tmp_path: Path) -> None:
    tensors = state("a.b.")
    del tensors["a.b.blocks.0.bias"]

    error = mismatch(tensors, tmp_path)

    assert error.missing == ("a.b.blocks.0.bias",)
    assert "lamp.safetensors: does not fit lamp (layout 'plain')\n  missing 1 keys: a.b.blocks.0.bias." in str(error)


def test_unexpected_keys_under_the_prefix_are_named_and_dropped_ones_are_not(tmp_path: Path) -> None:
    extra = {key: torch.ones(3) for key in ("a.blocks.0.gate", "a.blocks.0.mask", "optimizer", "a.elsewhere.weight")}

    error = mismatch(state("a.") | extra, tmp_path)

    assert error.unexpected == ("a.blocks.0.gate",)
    assert "unexpected 1 keys: a.blocks.0.gate" in str(error)


def test_wrong_shapes_are_named_with_both_shapes(tmp_path: Path) -> None:
    wrong = {"a.blocks.1.weight": torch.ones(11, 6), "a.stem.bias": torch.ones(6, 1)}

    error = mismatch(state("a.") | wrong, tmp_path)

    assert error.shapes == {"a.blocks.1.weight": ((12, 6), (11, 6)), "a.stem.bias": ((6,), (6, 1))}
    assert "a.stem.bias: expected (6,), found (6, 1)" in str(error)


def test_a_long_list_of_differences_is_cut(tmp_path: Path) -> None:
    tensors = {key: tensor for key, tensor in state(depth=30).items() if not key.endswith("bias")}

    message = str(mismatch(tensors, tmp_path))

    assert "missing 31 keys" in message
    assert "and 26 more" in message
    assert len(message) < 1000


def test_parts_that_are_not_equal_are_refused_rather_than_joined(tmp_path: Path) -> None:
    tensors = {"root.weight": torch.randn(6, 4), "root.bias": torch.randn(6), "count": torch.tensor(3)}
    for part, rows in (("up", 6), ("down", 6)):
        tensors |= {f"blocks.0.{part}.weight": torch.randn(rows, 6), f"blocks.0.{part}.bias": torch.randn(rows)}
    tensors["blocks.0.down.weight"] = torch.randn(5, 6)

    error = mismatch(tensors, tmp_path)

    assert error.shapes == {"blocks.0.down.weight": ((6, 6), (5, 6))}


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assign = nn.Module.load_state_dict

    def change(*_: object, **__: object) -> None:
        pytest.fail("weights of a changed file were assigned")

    save_file(state(), tmp_path / "lamp.safetensors")
    checkpoint = open_checkpoint(tmp_path / "lamp.safetensors")
    (found,) = Registry([family()]).identify(checkpoint).networks
    monkeypatch.setattr(nn.Module, "load_state_dict", change)
    _ = checkpoint["stem.bias"]
    os.utime(tmp_path / "lamp.safetensors", (1, 1))

    with pytest.raises(CorruptCheckpoint, match="changed while it was in use"):
        load_network(found, checkpoint, dtype=None, device=torch.device("cpu"))
    assert nn.Module.load_state_dict is not assign


MEASURE = """
import gc, os, sys
from pathlib import Path
import torch
from diffsynth.manager import ModelManager

folder = Path(sys.argv[1])

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

def measure(path, dtype):
    before = status("VmRSS")
    (entry,) = ModelManager(dtype, "cpu").load_model(path)
    loaded = status("VmHWM") - before
    for weight in entry.module.parameters():
        weight.sum()
    print(path.name, dtype, loaded, status("VmHWM") - before, entry.nbytes / 2**20, flush=True)

ModelManager(torch.float32, "cpu").load_model(folder / "small")
for path in sorted(folder.glob("large*")):
    for dtype in (torch.float32, torch.float16):
        if (child := os.fork()) == 0:
            measure(path, dtype)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture
def large_files(tmp_path: Path) -> Iterator[Path]:
    """The same wide denoiser in three formats and two dtypes, and a small one; removed when the test is over."""
    tiny = hunyuan_dit.FAMILY.tiny()
    wide = replace(tiny, hidden_size=1536, num_heads=16, mlp_size=6144, depth=2, extra_size=512)
    for dtype, bits in ((torch.float16, 16), (torch.float32, 32)):
        header = hunyuan_dit.FAMILY.header(wide, hunyuan_dit.FAMILY.layouts[0])
        tensors = {key: torch.ones(spec.shape, dtype=dtype) for key, spec in header.items()}
        save_file(tensors, tmp_path / f"large {bits} safetensors")
        torch.save(tensors, tmp_path / f"large {bits} zip")
        torch.save(tensors, tmp_path / f"large {bits} legacy", _use_new_zipfile_serialization=False)
    header = hunyuan_dit.FAMILY.header(tiny, hunyuan_dit.FAMILY.layouts[0])
    save_file({key: torch.ones(spec.shape) for key, spec in header.items()}, tmp_path / "small")
    yield tmp_path
    for path in tmp_path.iterdir():
        path.unlink()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_takes_the_memory_of_the_weights_and_of_one_tensor_more(large_files: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, str(large_files)], capture_output=True, text=True, check=True)

    allowed = 2 * 6144 * 1536 * 4 / 2**20 + 64  # MiB: the largest tensor, a copy of it, and what the allocator keeps
    rows = [line.rsplit(maxsplit=4) for line in done.stdout.splitlines()]
    assert len(rows) == 12
    for name, wanted, loaded, touched, weights in rows:
        assert float(weights) > 140, name
        assert float(loaded) < float(weights) + allowed, (name, wanted)
        assert float(touched) < float(weights) + allowed, (name, wanted)
        if name == f"large {wanted[-2:]} safetensors":
            assert float(loaded) < 48, "weights that need no conversion stay in the file until they are used"


def test_values_that_float16_cannot_hold_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tensors = state("a.")
    tensors["a.stem.bias"][:3] = torch.tensor([1e5, -7e4, float("inf")])
    tensors["a.blocks.0.bias"][0] = float("nan")
    tensors["a.blocks.1.bias"][0] = 65504

    for dtype in (torch.bfloat16, torch.float32, None):
        load(tensors, tmp_path, dtype)
    assert not caplog.records

    load(tensors, tmp_path, torch.float16)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "lamp.safetensors: 2 values are too large for float16" in record.message
    assert "in a.stem.bias (2). Load it with bfloat16 or float32." in record.message


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_weights_that_are_no_floating_point_numbers_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = state("a.")
    tensors["a.stem.weight"] = tensors["a.stem.weight"].to(dtype)

    with pytest.raises(UnsupportedCheckpoint) as raised:
        load(tensors, tmp_path)

    name = str(dtype).removeprefix("torch.")
    assert f"1 weights of lamp that are no floating-point numbers: a.stem.weight ({name})" in str(raised.value)

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from diffsynth.core.checkpoint import open_checkpoint, same_bits
from diffsynth.core.formats.safetensors import write_safetensors
from diffsynth.core.saving import save_network, save_tensors, to_layout
from diffsynth.errors import InvalidRequest
from diffsynth.types import TensorSpec

from .small_family import Lamp, LampConfig, family

CONFIG = LampConfig()


def test_a_layout_has_its_own_names_and_its_prefix() -> None:
    lamp, lamps = Lamp(CONFIG), family(prefix="lamp.")

    written = to_layout(lamp, lamps.layouts[1], CONFIG)

    assert {key for key in written if "1" in key} == {
        f"lamp.blocks.1.{part}.{kind}" for part in ("up", "down") for kind in ("weight", "bias")
    }
    assert torch.equal(written["lamp.blocks.1.down.weight"], lamp.get_parameter("blocks.1.weight")[6:])


@pytest.mark.parametrize("layout", ["plain", "split"])
def test_the_file_holds_the_weights_and_the_texts(layout: str, tmp_path: Path) -> None:
    lamp = Lamp(CONFIG)

    path = save_network(lamp, family(), CONFIG, tmp_path / "lamp.safetensors", layout, {"title": "a lamp"})

    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "title": "a lamp"}
    written = to_layout(lamp, family().layout(layout), CONFIG)
    found = load_file(path)
    assert found.keys() == written.keys()
    assert all(torch.equal(found[key], written[key]) for key in written)


def test_weights_that_are_views_or_transposed_can_be_saved(tmp_path: Path) -> None:
    lamp = Lamp(CONFIG)
    shared = torch.randn(24, 6)
    lamp.blocks[0].weight = torch.nn.Parameter(shared[:12])
    lamp.blocks[1].weight = torch.nn.Parameter(shared[12:])
    lamp.stem.weight = torch.nn.Parameter(torch.randn(4, 6).t())

    path = save_network(lamp, family(), CONFIG, tmp_path / "lamp.safetensors", "plain")

    assert torch.equal(load_file(path)["stem.weight"], lamp.stem.weight)
    assert torch.equal(load_file(path)["blocks.1.weight"], shared[12:])


def test_an_unknown_layout_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"lamp has no layout 'comfy', only plain, split"):
        save_network(Lamp(CONFIG), family(), CONFIG, tmp_path / "lamp.safetensors", "comfy")

    assert list(tmp_path.iterdir()) == []


def test_a_network_without_all_its_weights_is_refused(tmp_path: Path) -> None:
    lamp = Lamp(CONFIG)
    del lamp.stem

    with pytest.raises(InvalidRequest, match=r"2 of its weights were freed, such as stem\.bias, stem\.weight"):
        save_network(lamp, family(), CONFIG, tmp_path / "lamp.safetensors", "plain")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(torch.bool, (3,)), (torch.float8_e4m3fn, (7,)), (torch.float16, ()), (torch.bfloat16, (2, 3)),
     (torch.int64, (0, 4)), (torch.float64, (1, 2, 2))],
    ids=str,
)  # fmt: skip
def test_tensors_that_come_one_at_a_time_are_what_the_library_reads(
    dtype: torch.dtype, shape: tuple[int, ...], tmp_path: Path
) -> None:
    tensors = {
        "one": torch.ones(3, dtype=torch.uint8),
        "two": torch.randn(shape).to(dtype),
        "three": torch.randn(2, 2).t(),
    }
    header = {key: TensorSpec(tuple(tensor.shape), tensor.dtype) for key, tensor in tensors.items()}

    path = save_tensors(tmp_path / "a.safetensors", header, reversed(tensors.items()), {"note": "光"})

    found = load_file(path)
    assert found.keys() == tensors.keys()
    assert all(same_bits(found[key], tensor) and found[key].dtype is tensor.dtype for key, tensor in tensors.items())
    assert dict(open_checkpoint(path).header) == header
    assert open_checkpoint(path).metadata == {"format": "pt", "note": "光"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, *rest: Any) -> None:
        path.write_bytes(b"half")
        write_safetensors(Path("/dev/full"), *rest)

    (tmp_path / "lamp.safetensors").write_bytes(b"old")
    monkeypatch.setattr("diffsynth.core.saving.write_safetensors", fail)

    with pytest.raises(OSError, match=r"No space left on device: '.*lamp\.safetensors'") as raised:
        save_network(Lamp(CONFIG), family(), CONFIG, tmp_path / "lamp.safetensors", "plain")

    assert raised.value.errno == errno.ENOSPC
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_write_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        yield "one", torch.ones(3)
        raise KeyboardInterrupt

    header = dict.fromkeys(("one", "two"), TensorSpec((3,), torch.float32))

    with pytest.raises(KeyboardInterrupt):
        save_tensors(tmp_path / "a.safetensors", header, tensors())

    assert list(tmp_path.iterdir()) == []

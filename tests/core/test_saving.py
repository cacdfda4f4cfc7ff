from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from diffsynth.core.saving import save_network, to_layout
from diffsynth.errors import InvalidRequest

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


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(state: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "lamp.safetensors").write_bytes(b"old")
    monkeypatch.setattr("diffsynth.core.saving.save_file", fail)

    with pytest.raises(OSError, match="No space left"):
        save_network(Lamp(CONFIG), family(), CONFIG, tmp_path / "lamp.safetensors", "plain")

    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize(("text", "number"), [("I/O error: No space left (os error 28)", 28), ("broken", 5)])
def test_what_safetensors_reports_becomes_an_error_of_the_file(
    text: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SafetensorError(text)

    monkeypatch.setattr("diffsynth.core.saving.save_file", fail)

    with pytest.raises(OSError, match=r"lamp\.safetensors") as raised:
        save_network(Lamp(CONFIG), family(), CONFIG, tmp_path / "lamp.safetensors", "plain")

    assert raised.value.errno == number
    assert list(tmp_path.iterdir()) == []

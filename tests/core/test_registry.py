from __future__ import annotations

import time
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffsynth.core.checkpoint import Checkpoint, open_checkpoint
from diffsynth.core.registry import Registry
from diffsynth.core.signature import Match
from diffsynth.errors import AmbiguousCheckpoint, InvalidRequest, UnknownCheckpoint

from .small_family import LampConfig, family, state


def opened(tensors: dict[str, Tensor], folder: Path) -> Checkpoint:
    save_file(tensors, folder / "file.safetensors")
    return open_checkpoint(folder / "file.safetensors")


def refusal(tensors: dict[str, Tensor], folder: Path, kind: str | None = None) -> list[str]:
    with pytest.raises(UnknownCheckpoint) as raised:
        Registry([family(), family("torch_lamp")]).identify(opened(tensors, folder), kind)
    return str(raised.value).splitlines()


def test_a_file_is_recognised_and_its_sizes_measured(tmp_path: Path) -> None:
    identification = Registry([family()]).identify(opened(state(width=8, depth=3), tmp_path))

    (found,) = identification.networks
    assert (found.family.name, found.layout.name, found.prefix) == ("lamp", "plain", "")
    assert found.config == LampConfig(width=8, depth=3)
    assert found.label == "lamp (layout 'plain')"
    assert identification.unclaimed == ()


def test_several_networks_of_a_file_are_found_each_under_its_prefix(tmp_path: Path) -> None:
    tensors = state("b.") | state("a.model.", width=4) | {"optimizer.step": torch.ones(1)}

    identification = Registry([family()]).identify(opened(tensors, tmp_path))

    assert [(each.prefix, each.config.width) for each in identification.networks] == [("a.model.", 4), ("b.", 6)]
    assert identification.networks[0].label == "lamp (layout 'plain', under 'a.model.')"
    assert identification.unclaimed == ("optimizer.step",)


def test_extras_around_a_network_belong_to_it_without_a_quarrel(tmp_path: Path) -> None:
    lamps = Registry([family(extras=("vocabulary", "scale"))])
    extras = ("scale", "x.scale", "x.a.vocabulary", "x.a.model.vocabulary", "y.vocabulary", "vocabularies")
    tensors = state("x.a.model.") | state("x.b.") | {key: torch.ones(1) for key in extras}

    identification = lamps.identify(opened(tensors, tmp_path))

    first, second = identification.networks
    assert first.beside == {"scale", "x.scale", "x.a.vocabulary", "x.a.model.vocabulary"}
    assert second.beside == {"scale", "x.scale"}
    assert first.beside < first.keys
    assert set(identification.unclaimed) == {"y.vocabulary", "vocabularies"}


def test_two_families_that_claim_the_same_keys_are_both_named(tmp_path: Path) -> None:
    lamps = Registry([family(), family("lantern")])
    checkpoint = opened(state("a."), tmp_path)

    with pytest.raises(AmbiguousCheckpoint) as raised:
        lamps.identify(checkpoint)

    message = str(raised.value)
    assert "lamp (layout 'plain', under 'a.') and lantern (layout 'plain', under 'a.') both claim 7 keys" in message
    assert "Say which it is with kind='lamp' or kind='lantern'" in message
    assert lamps.identify(checkpoint, "lantern").networks[0].family.name == "lantern"
    assert lamps.identify(checkpoint, "lantern_alias").networks[0].family.name == "lantern"


def test_a_refusal_counts_the_tensors_and_shows_the_first(tmp_path: Path) -> None:
    first, *rest = refusal({f"layer.{i}.weight": torch.ones(i + 1, 2) for i in range(9)}, tmp_path)

    assert "is not recognised as any known network. It holds 9 tensors: layer.0.weight (1, 2), layer.1.weight" in first
    assert "layer.5" not in first
    assert not any("nearest" in line for line in rest)
    assert "say so with kind= (in Python) or --as (on the command line), with one of: lamp, torch_lamp." in first


def test_a_refusal_names_the_nearest_network_and_what_it_lacks(tmp_path: Path) -> None:
    tensors = state("model.")
    del tensors["model.stem.weight"]

    lines = refusal(tensors, tmp_path)

    assert lines[1] == "  nearest: lamp (layout 'plain'): missing model.stem.weight"


def test_a_refusal_tells_what_contradicts(tmp_path: Path) -> None:
    lines = refusal(state() | {"blocks.1.weight": torch.ones(12, 5)}, tmp_path, "lamp")

    assert "is not recognised as lamp." in lines[0]
    assert lines[1].startswith("  nearest: lamp (layout 'plain'): width is 6 in stem.weight, but 5 in blocks.1.weight")


def test_a_refusal_tells_what_no_config_allows(tmp_path: Path) -> None:
    tensors = {"stem.weight": torch.ones(5, 4), "blocks.0.weight": torch.ones(10, 5)}

    lines = refusal(tensors, tmp_path)

    assert lines[1].startswith("  nearest: lamp (layout 'plain'): width 5 is odd")


def test_a_refusal_says_that_a_lora_is_one(tmp_path: Path) -> None:
    message = "\n".join(refusal({"base_model.model.stem.lora_A.weight": torch.ones(2, 4)}, tmp_path))

    assert "its names are those of a LoRA" in message


def test_a_refusal_is_safe_to_print(tmp_path: Path) -> None:
    message = "\n".join(refusal({"\x1b[31mstem.weight\n" + "x" * 5000: torch.ones(1)}, tmp_path))

    assert "\x1b" not in message
    assert len(message) < 1000


def test_a_block_number_out_of_all_proportion_is_refused_at_once(tmp_path: Path) -> None:
    lines = refusal(state() | {"blocks.987654321.weight": torch.ones(12, 6)}, tmp_path)

    assert lines[1].startswith("  nearest: lamp (layout 'plain'): block goes up to 987654321, but only 3 are there")


def test_families_answer_to_their_aliases() -> None:
    lamps = Registry([family()])

    assert lamps.family("lamp_alias") is lamps.family("lamp")
    with pytest.raises(InvalidRequest, match=r"called 'lump'\. Known are: lamp"):
        lamps.family("lump")
    with pytest.raises(InvalidRequest, match=r"Known are: lamp, lamp_alias"):
        lamps.family("something else")


def test_folders_declare_one_family_or_several_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, content in (
        ("lamp_folder", "from tests.core.small_family import family\nFAMILY = family()"),
        ("other", ""),
        (
            "two_lamps",
            "from tests.core.small_family import family\n"
            "FAMILY = family('torch_lamp')\nFAMILIES = (FAMILY, family('oil_lamp'))",
        ),
    ):
        (tmp_path / "shelf" / name).mkdir(parents=True)
        (tmp_path / "shelf" / name / "__init__.py").write_text(content, "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    package = types.ModuleType("shelf")
    package.__path__ = [str(tmp_path / "shelf")]
    monkeypatch.setitem(__import__("sys").modules, "shelf", package)

    assert [each.name for each in Registry.collect(package).families] == ["lamp", "torch_lamp", "oil_lamp"]


def test_sizes_that_no_key_tells_are_a_reason_and_no_crash(tmp_path: Path) -> None:
    def read_config(match: Match) -> LampConfig:
        return LampConfig(width=match.sizes["width9"])

    lamps = family()
    lamps = replace(lamps, layouts=tuple(replace(layout, read_config=read_config) for layout in lamps.layouts))

    with pytest.raises(UnknownCheckpoint, match=r"nearest: lamp \(layout 'plain'\): no key tells the size width9"):
        Registry([lamps]).identify(opened(state(), tmp_path))


def test_a_kind_that_does_not_fit_is_told_what_differs_and_not_to_name_a_kind(tmp_path: Path) -> None:
    lines = refusal({"other": torch.ones(1)}, tmp_path, "lamp")

    assert lines[1].startswith("  nearest: lamp (layout 'plain'): missing stem.weight, blocks.{block}.weight")
    assert "kind=" not in "".join(lines)
    assert "--as" not in "".join(lines)


def test_a_file_of_very_many_networks_is_looked_at_quickly(tmp_path: Path) -> None:
    checkpoint = opened({f"n{i}.stem.weight": torch.ones(1) for i in range(20_000)}, tmp_path)
    lamps = Registry([family()])
    begin = time.monotonic()

    with pytest.raises(UnknownCheckpoint):
        lamps.identify(checkpoint)

    assert time.monotonic() - begin < 1.5  # 0.2 s where nothing else runs

"""What differs between two recipes, the most important first."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from diffsynth.pipelines.differences import Effect, differences


def source(family: str, path: str, digest: str | None, **facts: Any) -> dict[str, Any]:
    return {"family": family, "path": path, **facts, "files": [{"path": path, "sha256": digest}]}


def recipe() -> dict[str, Any]:
    network = {"layout": "original", "prefix": "", "dtype": "float32", "device": "cpu"}
    lora = {"scale": 0.5, "strict": True, "merged": False}
    return {
        "version": 1,
        "diffsynth": "0.1.0",
        "torch": "2.13.0",
        "python": "3.11.7",
        "pipeline": "HunyuanDiTImagePipeline",
        "conventions": "diffsynth",
        "request": {
            "prompt": "a fox",
            "seed": 7,
            "cfg_scale": 5.0,
            "negative_prompt": "",
            "tiled": False,
            "tile_size": 64,
        },
        "models": [
            source("hunyuan_dit", "/a/dit.pt", "1" * 64, **network),
            source("mt5", "/a/t5.bin", "2" * 64, **network),
        ],
        "vocabularies": [source("t5_tokenizer", "/a/spiece.model", "3" * 64)],
        "adapters": [source("lora", "/a/ink.safetensors", "4" * 64, **lora)],
    }


def told(second: dict[str, Any]) -> list[str]:
    return [str(each) for each in differences(recipe(), second)]


def test_equal_recipes_differ_in_nothing() -> None:
    assert told(recipe()) == []
    assert told({**recipe(), "key": "of a batch"}) == []


def test_one_setting_is_one_line() -> None:
    other = recipe()
    other["request"]["seed"] = 8

    assert told(other) == ["seed: 7 | 8"]


def test_everything_is_told_networks_first_and_what_changes_nothing_last() -> None:
    other = deepcopy(recipe())
    other["python"], other["torch"], other["diffsynth"] = "3.12.1", "2.14.0", "0.2.0"
    other["models"][0].update(path="/b/dit2.pt", dtype="bfloat16", files=[{"path": "/b/dit2.pt", "sha256": "5" * 64}])
    other["models"][1].update(path="/b/t5.bin", device="cuda")
    other["vocabularies"] = [source("t5_tokenizer", "/a/spiece.model", "6" * 64)]
    other["adapters"][0].update(scale=0.75, merged=True)
    other["conventions"] = "original"
    other["request"].update(prompt="a wolf", cfg_scale=6.0, tile_size=32)

    found = differences(recipe(), other)

    assert [str(each) for each in found] == [
        "hunyuan_dit, its file: dit.pt (sha256 111111111111) | dit2.pt (sha256 555555555555)",
        "t5_tokenizer, its file: spiece.model (sha256 333333333333) | spiece.model (sha256 666666666666)",
        "lora, scale: 0.5 | 0.75",
        "conventions: diffsynth | original",
        "prompt: a fox | a wolf",
        "cfg_scale: 5.0 | 6.0",
        "hunyuan_dit, dtype: float32 | bfloat16",
        "mt5, device: cpu | cuda",
        "lora, merged: False | True",
        "diffsynth: 0.1.0 | 0.2.0",
        "torch: 2.13.0 | 2.14.0",
        "mt5, where the same file lies: /a/t5.bin | /b/t5.bin",
        "tile_size: 64 | 32",
        "python: 3.11.7 | 3.12.1",
    ]
    assert [each.effect for each in found] == sorted([Effect.IMAGE] * 6 + [Effect.ROUNDING] * 5 + [Effect.NOTHING] * 3)


def test_a_lora_more_is_told_and_the_order_of_two_is_not() -> None:
    one, two = recipe(), recipe()
    more = source("lora", "/a/jade.safetensors", "7" * 64, scale=1.0, strict=True, merged=False)
    one["adapters"], two["adapters"] = [*one["adapters"], more], [more, *two["adapters"]]

    assert differences(one, two) == []
    assert told(one) == ["lora 2: none | jade.safetensors=1.0 (sha256 777777777777)"]
    assert told({**recipe(), "adapters": []}) == ["lora: ink.safetensors=0.5 (sha256 444444444444) | none"]


def test_a_file_that_was_changed_since_equals_no_other() -> None:
    other = recipe()
    other["models"][0]["files"][0]["sha256"] = None

    (line,) = told(other)

    assert line.endswith("dit.pt (without a hash: it was changed since)")


@pytest.mark.parametrize(("scale", "effect"), [(5.0, Effect.IMAGE), (1.0, Effect.NOTHING)])
def test_a_negative_prompt_has_no_effect_without_guidance(scale: float, effect: Effect) -> None:
    one, two = recipe(), recipe()
    one["request"]["cfg_scale"] = two["request"]["cfg_scale"] = scale
    two["request"]["negative_prompt"] = "a rose"

    (found,) = differences(one, two)

    assert (found.name, found.effect) == ("negative_prompt", effect)


def test_long_prompts_are_shown_where_they_differ() -> None:
    one, two = recipe(), recipe()
    one["request"]["prompt"], two["request"]["prompt"] = (
        "a lighthouse, " * 20 + each + ", fog" * 20 for each in ("ink", "oil")
    )

    (found,) = differences(one, two)

    assert found.first.startswith("… a lighthouse, ink, fog")
    assert found.second.startswith("… a lighthouse, oil, fog")
    assert max(len(found.first), len(found.second)) <= 60


def test_pictures_are_told_by_size_and_hash_and_what_older_versions_lack_is_unset() -> None:
    other = recipe()
    other["request"].update(input_image={"size": [96, 64], "sha256": "8" * 64}, hires_scale=None, masks=[])

    assert told(other) == ["input_image: none | a picture of 96x64 (sha256 888888888888)"]


def test_of_two_pipelines_only_the_settings_of_both_are_compared() -> None:
    other = {**recipe(), "pipeline": "SDImagePipeline"}
    other["request"] = {"prompt": "a fox", "seed": 8, "clip_skip": 2}

    assert told(other) == ["pipeline: HunyuanDiTImagePipeline | SDImagePipeline", "seed: 7 | 8"]

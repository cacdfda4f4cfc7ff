"""A job in, a folder of images out: the same bytes whatever happened on the way."""

from __future__ import annotations

import json
import logging
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffsynth import HunyuanDiTImagePipeline
from diffsynth.batch import Progress, Shard, make_plan, read_entries, run_batch, run_plan
from diffsynth.batch.images import recipe_in
from diffsynth.errors import Cancelled, InvalidRequest
from diffsynth.pipelines.recipe import read_recipe
from tests.pipelines.toy import largest_difference

SMALL: dict[str, Any] = {"height": 32, "width": 32, "num_inference_steps": 1, "cfg_scale": 2.0}
JOB: list[dict[str, Any]] = [
    *({"prompt": f"a cat number {number}", **SMALL} for number in range(5)),
    {"prompt": "a cat number 0", "seed": 4, **SMALL, "width": 48},
    {"prompt": "一只熊猫", "seed": 4, "negative_prompt": "a cat", **SMALL},
]


def lines(folder: Path, name: str = "ledger.jsonl") -> list[dict[str, Any]]:
    """Return the lines of a ledger about images."""
    found = [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
    return [line for line in found if "key" in line]


def contents(folder: Path) -> dict[str, bytes]:
    """Return every image of a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.png"))}


def test_a_job_becomes_images_with_their_recipes_and_a_ledger(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    progress = run_batch(pipe, JOB, out, batch_size=4)

    assert (progress.images, progress.drawn, progress.failures) == (7, 7, {})
    images = contents(out)
    noted = lines(out)
    assert [line["files"] for line in noted] == [
        [name] for name in sorted(images, key=lambda name: name[:6] == "000005")
    ]
    assert all(len(line["sha256"]) == 64 and line["seconds"] > 0 for line in noted)
    assert [line["rows"] for line in noted] == [4, 4, 4, 4, 2, 2, 1]
    panda = read_recipe(out / "000006-4.png")
    assert panda["request"]["prompt"] == "一只熊猫"
    assert panda["key"] == noted[5]["key"]
    assert panda["request"] == noted[5]["request"]
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_images_are_those_of_a_call_to_the_last_digit_and_exactly_so_one_by_one(
    pipe: HunyuanDiTImagePipeline, out: Path
) -> None:
    run_batch(pipe, JOB, out / "together", batch_size=4)
    run_batch(pipe, JOB, out / "alone", exact=True)

    for line in lines(out / "together"):
        request = line["request"]
        expected = pipe(**{name: request[name] for name in ("prompt", "negative_prompt", "seed", *SMALL)})
        (name,) = line["files"]
        with Image.open(out / "together" / name) as image:
            assert largest_difference(image, expected) <= 1
        with Image.open(out / "alone" / name) as image:
            assert image.tobytes() == expected.tobytes()


@pytest.mark.parametrize("format", ["files", "tar"])
def test_images_of_batches_that_are_wanted_one_by_one_are_kept_and_told_of(
    format: str, pipe: HunyuanDiTImagePipeline, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_batch(pipe, JOB, out, batch_size=4, format=format)
    run_batch(pipe, JOB, out, batch_size=4, format=format)
    assert "drawn together" not in caplog.text

    progress = run_batch(pipe, JOB, out, exact=True, format=format)

    assert progress.drawn == 0
    assert "6 finished images were drawn together with others and are kept" in caplog.text


def test_two_shards_and_one_process_write_the_same_bytes(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    entries = read_entries(JOB, pipe.request_type)
    plan = make_plan(pipe, entries, names="{index}.png", batch_size=2)

    run_plan(pipe, plan, out / "whole")
    for index in range(2):
        shard = Shard(index, 2)
        run_plan(pipe, plan, out / "parts", choose=shard, ledger=shard.ledger)

    assert contents(out / "parts") == contents(out / "whole")
    assert [len(lines(out / "parts", f"ledger-{index}-of-2.jsonl")) for index in range(2)] == [4, 3]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 30])
def test_few_units_are_cut_between_batches_so_that_every_process_has_work(
    pipe: HunyuanDiTImagePipeline, count: int
) -> None:
    job = [{"prompt": f"{number}", **SMALL, "width": 32 + 16 * (number % 5 == 0)} for number in range(100)]
    plan = make_plan(pipe, read_entries(job, pipe.request_type), names="{index}.png", batch_size=3)
    assert len(plan.units) == 3

    parts = [Shard(index, count)(plan.units) for index in range(count)]

    assert all(parts)
    drawn_together = {batch for unit in plan.units for batch in unit.batches()}
    assert {batch for part in parts for unit in part for batch in unit.batches()} == drawn_together
    assert sum(len(unit.items) for part in parts for unit in part) == 100
    assert [list(Shard(index, 2, whole=True)(plan.units)) for index in range(2)] == [
        list(plan.units[::2]), list(plan.units[1::2])
    ]  # fmt: skip


def test_archives_are_the_same_for_any_number_of_shards(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    plan = make_plan(pipe, read_entries(JOB, pipe.request_type), names="{index}.png", batch_size=2)

    run_plan(pipe, plan, out / "whole", format="tar")
    for index in range(2):
        shard = Shard(index, 2)
        run_plan(pipe, plan, out / "parts", choose=shard, ledger=shard.ledger, format="tar")

    assert [path.name for path in sorted((out / "parts").glob("*.tar"))] == [
        path.name for path in sorted((out / "whole").glob("*.tar"))
    ]


def test_stopped_and_resumed_it_ends_with_the_same_bytes(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    run_batch(pipe, JOB, out / "whole", batch_size=4)

    def stop_after(number: int) -> Any:
        def check(progress: Progress) -> None:
            if progress.drawn == number:
                raise Cancelled("enough")

        return check

    for number in (1, 2, 3):
        with pytest.raises(Cancelled):
            run_batch(pipe, JOB, out / "parts", batch_size=4, on_progress=stop_after(number))
    last = run_batch(pipe, JOB, out / "parts", batch_size=4)

    assert (last.finished, last.images) == (6, 1)
    assert contents(out / "parts") == contents(out / "whole")
    assert len(lines(out / "parts")) == 7


def test_a_finished_job_draws_nothing_again(
    pipe: HunyuanDiTImagePipeline, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_batch(pipe, JOB, out)
    monkeypatch.setattr(pipe, "draw_latents", lambda *_: pytest.fail("drawn again"))

    for verify in (False, True):
        again = run_batch(pipe, JOB, out, verify=verify)
        assert (again.images, again.finished) == (0, 7)


def test_the_same_image_twice_is_drawn_once_under_both_names(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    twice = [
        {"prompt": "a cat", "seed": 3, **SMALL},
        {"prompt": "a cat", "generator": 3, "guidance_scale": 2, "file": "copy/cat.png", **{**SMALL, "cfg_scale": 2.0}},
    ]
    twice[1].pop("cfg_scale")

    progress = run_batch(pipe, twice, out)

    assert progress.drawn == 1
    [line] = lines(out)
    assert line["files"] == ["000000-3.png", "copy/cat.png"]
    assert (out / "copy" / "cat.png").samefile(out / "000000-3.png")


def test_other_formats_hold_recipe_and_key_too(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    job = [{"prompt": "a cat", "seed": 3, "file": f"cat.{suffix}", **SMALL} for suffix in ("jpg", "webp", "png")]

    run_batch(pipe, job, out, quality=100)

    recipes = [recipe_in(out / each["file"]) for each in job]
    assert recipes[0] == recipes[1] == recipes[2]
    assert recipes[0] is not None
    assert recipes[0]["request"]["prompt"] == "a cat"
    with Image.open(out / "cat.webp") as webp, Image.open(out / "cat.png") as png:
        assert webp.convert("RGB").tobytes() == png.tobytes()
    assert run_batch(pipe, job, out, quality=100).images == 0


def test_files_of_others_are_never_replaced(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    run_batch(pipe, JOB[:3], out)
    before = contents(out)

    changed = [JOB[0], {**JOB[1], "prompt": "a dog"}, {**JOB[2], "prompt": "a dog"}]
    with pytest.raises(InvalidRequest, match=r"2 problems(.|\n)*000001-(.|\n)*is there already and is another image"):
        run_batch(pipe, changed, out)

    assert contents(out) == before


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_file_that_is_not_what_the_ledger_says_is_noticed(
    pipe: HunyuanDiTImagePipeline, out: Path, damage: str
) -> None:
    run_batch(pipe, JOB[:2], out)
    before = contents(out)
    first = out / min(before)
    if damage == "gone":
        first.unlink()
        assert run_batch(pipe, JOB[:2], out).drawn == 1
        assert contents(out) == before
        return
    content = before[first.name]
    first.write_bytes(content[:-9] if damage == "cut" else content[:-20] + bytes(20))

    with pytest.raises(InvalidRequest, match="or was changed"):
        run_batch(pipe, JOB[:2], out)


def test_a_copied_folder_is_known_by_its_hashes(pipe: HunyuanDiTImagePipeline, out: Path, tmp_path: Path) -> None:
    run_batch(pipe, JOB[:2], out)
    shutil.copytree(out, tmp_path / "copy", copy_function=shutil.copyfile)

    assert run_batch(pipe, JOB[:2], tmp_path / "copy").images == 0


def test_an_image_without_a_line_in_the_ledger_is_adopted(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    run_batch(pipe, JOB[:3], out)
    ledger = out / "ledger.jsonl"
    kept = ledger.read_text().splitlines(keepends=True)
    ledger.write_text("".join(kept[:-1]) + kept[-1][:50])  # torn in the middle of the last line

    progress = run_batch(pipe, JOB[:3], out)

    assert (progress.images, progress.finished) == (0, 3)
    assert lines(out)[-1]["note"] == "found on the disk, in no ledger"
    assert len(lines(out)) == 3


def test_a_new_name_of_a_finished_image_is_a_link(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    job = [{"prompt": "a cat", "seed": 3, **SMALL}]
    run_batch(pipe, job, out, names="first-{seed}.png")

    progress = run_batch(pipe, job, out, names="second/{seed}.png")

    assert progress.drawn == 0
    assert (out / "second" / "3.png").samefile(out / "first-3.png")


def test_one_process_writes_a_ledger_and_others_have_their_own(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    def another(progress: Progress) -> None:
        if progress.step == 0:
            with pytest.raises(InvalidRequest, match="another process draws"):
                run_batch(pipe, JOB[:1], out)
            run_batch(pipe, JOB[:1], out, ledger="ledger-other.jsonl")

    run_batch(pipe, JOB[:1], out, on_progress=another)

    assert len(contents(out)) == 1
    assert len(lines(out)) == len(lines(out, "ledger-other.jsonl")) == 1


def names_of(units: Sequence[Any]) -> list[str]:
    return [unit.name for unit in units]


def test_a_plan_depends_on_the_job_alone(pipe: HunyuanDiTImagePipeline) -> None:
    first, second = (
        make_plan(pipe, read_entries(JOB, pipe.request_type), names="{index}.png", batch_size=2) for _ in range(2)
    )

    assert names_of(first.units) == names_of(second.units)
    assert first.items == second.items
    assert [len(unit.items) for unit in first.units] == [6, 1]


def test_settings_without_effect_are_told_of_once_for_a_group(
    pipe: HunyuanDiTImagePipeline, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"prompt": "a", **SMALL, "cfg_scale": 1.0}
    job = [row, {**row, "negative_prompt": "b"}, {**row, "negative_prompt": "c"}, {**row, "seed": 3, "tile_size": 32}]

    with caplog.at_level(logging.WARNING):
        make_plan(pipe, read_entries(job, pipe.request_type), names="{index}.png")

    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "the negative prompt has no effect: cfg_scale 1.0 turns guidance off",
        "tile_size and tile_stride have no effect without tiled=True",
    ]


def test_recipes_are_read_from_every_format_and_from_beside_an_image_in_an_archive(
    pipe: HunyuanDiTImagePipeline, out: Path
) -> None:
    job = [{"prompt": "a cat", "seed": 3, "file": f"cat.{suffix}", **SMALL} for suffix in ("png", "jpg", "webp")]
    run_batch(pipe, job, out)
    run_batch(pipe, job[:1], out / "archive", format="tar")
    with tarfile.open(next((out / "archive").glob("*.tar"))) as tar:
        tar.extract("cat.json", out, filter="data")

    png, *others = (read_recipe(out / f"cat.{suffix}") for suffix in ("png", "jpg", "webp", "json"))

    assert png["request"]["prompt"] == "a cat"
    assert others == [png] * 3


@pytest.mark.parametrize("content", [b"", b"{", b"RIFFxxxxWEBP", b"\xff\xd8\xff\xe0", b"\x89PNG", b"{}", b"GIF89a"])
def test_a_file_without_a_recipe_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(content)

    with pytest.raises(InvalidRequest, match="recipe"):
        read_recipe(path)

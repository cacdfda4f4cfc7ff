"""Jobs as people write them: rows, sweeps, wildcards, pictures; and all that may be wrong with them, at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from diffsynth.batch.expand import Entry, settings_problems
from diffsynth.batch.pictures import PictureFile
from diffsynth.batch.run import read_entries
from diffsynth.errors import InvalidRequest
from diffsynth.pipelines.hunyuan_dit.request import HunyuanDiTRequest
from diffsynth.pipelines.sdxl.request import SDXLRequest


def entries(source: Any, **more: Any) -> list[Entry]:
    return read_entries(source, HunyuanDiTRequest, **more)


def write(path: Path, *rows: Any) -> Path:
    """Write JSON lines; text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_one_job_in_three_spellings_is_the_same(tmp_path: Path) -> None:
    lines = write(
        tmp_path / "job.jsonl",
        {"prompt": "一只熊猫", "num_inference_steps": 2, "guidance_scale": 3},
        "",
        {"prompt": "a fox, or two", "steps": 2, "cfg_scale": 3.0},
    )
    table = tmp_path / "job.csv"
    table.write_text('﻿prompt,num_inference_steps,guidance_scale,seed\n一只熊猫,2,3,\n"a fox, or two",2,3.0,\n', "utf-8")
    plain = tmp_path / "job.txt"
    plain.write_text("一只熊猫\r\ra fox, or two\r\n", "utf-8", newline="")

    first, second = entries(lines), entries(table)
    third = entries(plain, defaults={"num_inference_steps": 2, "cfg_scale": 3})

    def facts(found: list[Entry]) -> list[Any]:
        return [(each.number, each.row, each.prompt, each.seed, each.shared) for each in found]

    assert facts(first) == facts(second) == facts(third)
    assert [each.prompt for each in first] == ["一只熊猫", "a fox, or two"]
    assert [each.where for each in first] == ["job.jsonl, line 1", "job.jsonl, line 3"]


def test_a_seed_is_derived_from_the_row_and_shared_by_its_sweep(tmp_path: Path) -> None:
    job = write(tmp_path / "job.jsonl", {"prompt": "a"}, {"prompt": "a", "sweep": {"cfg_scale": [2, 4]}})

    first, again, other = entries(job), entries(job), entries(job, job_seed=1)

    assert first == again
    assert first[0].seed != first[1].seed == first[2].seed
    assert all(0 <= each.seed < 2**32 for each in first)
    assert {each.seed for each in first}.isdisjoint(each.seed for each in other)


def test_sweeps_multiply_out_in_order(tmp_path: Path) -> None:
    job = write(tmp_path / "job.jsonl", {"prompt": "a", "sweep": {"size": ["64x32", "32x64"], "cfg_scale": [2, 4]}})

    found = entries(job, sweeps={"seed": "0..2, 7", "scheduler": "ddim,unipc"})

    assert len(found) == 4 * 2 * 2 * 2
    settings = [{"seed": each.seed, **dict(each.shared)} for each in found]
    assert [each["seed"] for each in settings[::8]] == [0, 1, 2, 7]
    assert settings[0] == {"seed": 0, "scheduler": "ddim", "width": 64, "height": 32, "cfg_scale": 2}
    assert settings[1]["cfg_scale"] == 4
    assert settings[-1] == {"seed": 7, "scheduler": "unipc", "width": 32, "height": 64, "cfg_scale": 4}


def test_several_images_of_a_row_have_seeds_that_follow_one_another(tmp_path: Path) -> None:
    found = entries(write(tmp_path / "job.jsonl", {"prompt": "a", "seed": 5, "num_images_per_prompt": 3}))

    assert [each.seed for each in found] == [5, 6, 7]


def test_wildcards_are_chosen_by_row_and_seed(tmp_path: Path) -> None:
    (tmp_path / "animals.txt").write_text("fox\n\n{big|small} cat\n", "utf-8")
    job = write(tmp_path / "job.jsonl", {"prompt": "a {red|green|} __animals__", "sweep": {"seed": "0..29"}})

    first, again = entries(job), entries(job)

    assert first == again
    words = {each.prompt for each in first}
    assert words <= {
        f"a {color} {animal}" for color in ("red", "green", "") for animal in ("fox", "big cat", "small cat")
    }
    assert len(words) > 5
    assert entries(job, wildcards=False)[0].prompt == "a {red|green|} __animals__"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("__nothing__", r"nothing.txt beside the job, which cannot be read \(No such"),
        ("__loop__", "lead to one another"),
    ],
)
def test_wildcards_that_lead_nowhere_are_named(tmp_path: Path, prompt: str, message: str) -> None:
    (tmp_path / "loop.txt").write_text("__loop__", "utf-8")

    with pytest.raises(InvalidRequest, match=f"line 1: .*{message}"):
        entries(write(tmp_path / "job.jsonl", {"prompt": prompt}))


def test_everything_that_is_wrong_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    job = write(
        tmp_path / "job.jsonl",
        {"prompt": "fine"},
        {"prompt": "a", "hieght": 64, "cfg_scale": -1, "num_inference_steps": 2.5},
        {"seed": 3, "num_inference_steps": 0},
        {"prompt": "a", "strength": 0.5, "masks": ["absent.png"]},
        {"prompt": "a", "seed": -1, "size": "wide"},
        {"sweep": {"cfg_scale": []}, "hires_steps": 0},
        {"prompt": "a", "cfg_scale": 1, "guidance_scale": 2},
        {"prompt": "a", "num_images_per_prompt": 0, "file": 3},
    )

    with pytest.raises(InvalidRequest) as caught:
        entries(job)

    told = str(caught.value).splitlines()
    assert told[0] == f"the job cannot be drawn, {len(told) - 1} problems:"
    expected = [
        ("line 2", "there is no setting called 'hieght'. Did you mean height"),
        ("line 2", "cfg_scale must be a number from 0 to 100"),
        ("line 2", "num_inference_steps must be a whole number"),
        ("line 3", "has no prompt"),
        ("line 3", "num_inference_steps must be a whole number from 1"),
        ("line 4", "absent.png"),
        ("line 4", "denoising_strength 0.5 needs an input_image"),
        ("line 4", "0 local_prompts need as many masks; 1 were given"),
        ("line 5", "size must be WIDTHxHEIGHT"),
        ("line 5", "seed must be a whole number from 0"),
        ("line 6", "sweep over cfg_scale: give a list of values"),
        ("line 6", "hires_steps must be a whole number from 1"),
        ("line 7", "cfg_scale is given twice"),
        ("line 8", "num_images_per_prompt must be a whole number from 1"),
        ("line 8", "file must be text"),
    ]
    for line, problem in expected:
        assert [each for each in told if line in each and problem in each], (line, problem, told)
    assert len(told) == len(expected) + 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "job.jsonl",
            '{"prompt": "a"\n[1]\n{"prompt": 1, "prompt": 2}\n',
            r"3 problems(.|\n)*line 1(.|\n)*line 2(.|\n)*line 3",
        ),
        ("job.csv", "prompt,prompt\na,b\n", "two columns have the same name"),
        ("job.csv", "prompt\na,b\n", "line 2: has 2 cells for 1 columns"),
        ("job.txt", "\n \n", "holds no rows"),
        ("job.yaml", "a", "a job is a file ending in .jsonl, .csv, .txt"),
        ("job.txt", "\udcff", "is not UTF-8 text"),
        ("job.txt", "a\0 \0f\0o\0x\0\n\0", "is not UTF-8 text: it has zero bytes. Save it as UTF-8"),
    ],
)
def test_files_that_are_no_jobs_are_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))

    with pytest.raises(InvalidRequest, match=message):
        entries(tmp_path / name)


def test_pictures_are_found_beside_the_job_and_nowhere_else(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    Image.new("RGB", (8, 8), "red").save(folder / "red.png")
    Image.new("RGB", (8, 8), "blue").save(tmp_path / "outside.png")
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    good = write(
        folder / "good.jsonl", {"prompt": "a", "image": "red.png"}, {"prompt": "b", "input_image": "./red.png"}
    )
    names = ("../outside.png", str(tmp_path / "outside.png"), "link.png", "good.jsonl")
    bad = write(folder / "bad.jsonl", *({"prompt": "a", "image": name} for name in names))

    first, second = entries(good)
    with pytest.raises(InvalidRequest) as caught:
        entries(bad)

    (found,) = (value for name, value in first.shared if name == "input_image")
    assert isinstance(found, PictureFile)
    assert found.path == folder / "red.png"
    assert first.shared == second.shared
    assert str(caught.value).count("lies outside the job's folder") == 3
    assert "is not a picture" in str(caught.value)


def test_pictures_that_are_missing_are_all_named_and_nothing_else_is_said_of_them(tmp_path: Path) -> None:
    masks = {"local_prompts": ["a", "b", "c"], "masks": ["one.png", "../two.png", "one.png"], "mask_scales": [1, 1, 1]}
    job = write(tmp_path / "job.jsonl", {"prompt": "a", "image": "absent.png", "strength": 0.5, **masks})

    with pytest.raises(InvalidRequest) as caught:
        entries(job)

    assert str(caught.value).splitlines()[1:] == [
        "  job.jsonl, line 1: absent.png cannot be read: No such file or directory.",
        "  job.jsonl, line 1: one.png cannot be read: No such file or directory.",
        "  job.jsonl, line 1: ../two.png lies outside the job's folder, where pictures must be.",
    ]


def test_a_picture_that_changes_while_the_job_runs_is_noticed(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    (entry,) = entries(write(tmp_path / "job.jsonl", {"prompt": "a", "image": "red.png"}))
    picture = dict(entry.shared)["input_image"]
    Image.new("RGB", (8, 9), "blue").save(tmp_path / "red.png")

    with pytest.raises(InvalidRequest, match="was changed while the job ran"):
        picture.open()


def test_cells_of_a_table_have_the_types_of_their_settings(tmp_path: Path) -> None:
    table = tmp_path / "job.csv"
    table.write_text('prompt,crop,tiled,refiner_start,clip_skip\n1.5,1; 2,yes,0.5,2\n2,"[3, 4]",,,x\n', "utf-8")

    with pytest.raises(InvalidRequest, match="line 3: clip_skip must be a whole number from 1 to 1000, not 'x'"):
        read_entries(table, SDXLRequest)
    table.write_text(table.read_text().replace(",x", ","))
    first, second = read_entries(table, SDXLRequest)

    assert first.prompt == "1.5"
    assert dict(first.shared) == {"crop": (1, 2), "tiled": True, "refiner_start": 0.5, "clip_skip": 2}
    assert dict(second.shared) == {"crop": (3, 4)}


def test_requests_and_mappings_are_jobs_too() -> None:
    picture = Image.new("RGB", (8, 8))
    requests = [HunyuanDiTRequest(prompt="a", input_image=picture, seed=2), {"prompt": "b", "input_image": picture}]

    first, second = entries(requests)

    assert (first.prompt, first.seed, second.prompt) == ("a", 2, "b")
    assert first.shared == second.shared
    with pytest.raises(InvalidRequest, match="request 1 is neither a request nor a mapping"):
        entries(["a"])
    with pytest.raises(InvalidRequest, match="a job is a file, or a list of requests, not None"):
        entries(None)


def test_settings_are_refused_for_every_reason_at_once() -> None:
    bad = {"cfg_scale": "x", "height": 1, "hires_steps": 3, "nothing": 1}

    assert len(settings_problems(bad, HunyuanDiTRequest)) == 4
    assert len(settings_problems({"input_image": 3, "denoising_strength": 0.5}, HunyuanDiTRequest)) == 1
    assert settings_problems({"cfg_scale": 2, "height": 64}, HunyuanDiTRequest) == []


def test_whole_numbers_and_floats_are_one_setting_in_any_order() -> None:
    rows = [{"prompt": "a", "cfg_scale": 3}, {"prompt": "a", "cfg_scale": 3.0}]

    for job in (rows, rows[::-1]):
        first, second = entries(job)
        assert first.shared is second.shared
        assert [repr(value) for _, value in first.shared] == ["3.0"]


def test_a_truth_is_no_number_whatever_the_row_before_has() -> None:
    with pytest.raises(InvalidRequest, match="1 problem:\n  request 2: cfg_scale must be a number"):
        entries([{"prompt": "a", "cfg_scale": 1}, {"prompt": "a", "cfg_scale": True}])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"seed": True}, "seed must be a whole number"),
        ({"input_image": "a\0b.png"}, "cannot be the name of a picture"),
        ({"input_image": "loop.png"}, "loop.png"),
        ('{"prompt": "a", "cfg_scale": ' + "[" * 600 + "]" * 600 + "}", "cfg_scale has lists in lists"),
    ],
)
def test_odd_values_are_refused_by_name(tmp_path: Path, row: Any, message: str) -> None:
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")

    with pytest.raises(InvalidRequest, match=f"job.jsonl, line 1: .*{message}"):
        entries(write(tmp_path / "job.jsonl", row if isinstance(row, str) else {"prompt": "a", **row}))


def test_halves_of_characters_are_told_of_before_anything_is_drawn(tmp_path: Path) -> None:
    half = '"\\ud83d!"'
    job = write(
        tmp_path / "job.jsonl",
        f'{{"prompt": {half}}}',
        f'{{"prompt": "a", "negative_prompt": {half}, "local_prompts": [{half}], "masks": ["red.png"]}}',
        '{"prompt": "\\ud83e\\udd8a"}',
    )
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")

    with pytest.raises(InvalidRequest) as caught:
        entries(job)

    told = str(caught.value)
    assert told.count("holds half of a character (U+D83D)") == 3
    for where in ("line 1: prompt holds", "line 2: negative_prompt holds", "line 2: local_prompts holds"):
        assert where in told


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"file": "../a.png"}, "must stay inside the output folder"),
        ({"file": "a.gif"}, "must end in one of .png"),
        ({"file": "a\0.png"}, "has characters that no file's name should have"),
        ({"size": "64x64", "width": 64}, "size and width are both given"),
        ({"cfg_scale": 2, "sweep": {"guidance_scale": [2, 3]}}, "cfg_scale is given, and cfg_scale is swept over"),
        ({"height": 64, "sweep": {"size": ["64x64"]}}, "height is given, and size is swept over"),
    ],
)
def test_names_and_contradictions_are_refused_without_a_pipeline(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"1 problem:\n  job.jsonl, line 1: .*{message}"):
        entries(write(tmp_path / "job.jsonl", {"prompt": "a", **row}))


def test_what_is_wrong_with_settings_of_all_rows_is_said_once(tmp_path: Path) -> None:
    job = write(tmp_path / "job.jsonl", {"prompt": "a"}, {"prompt": "b"})

    for given, message in (
        ({"sweeps": {"sed": "1,2"}}, "there is no setting called 'sed'. Did you mean seed"),
        ({"defaults": {"cfg_scale": 2}, "sweeps": {"cfg_scale": "1,2"}}, "cfg_scale is given, and cfg_scale is swept"),
        ({"sweeps": {"seed": "9..1"}}, "sweep over seed: 9..1 is no range"),
    ):
        with pytest.raises(InvalidRequest, match=f"1 problem:\n  settings of all rows: {message}"):
            entries(job, **given)


def test_problems_are_told_in_the_order_of_lines_whatever_finds_them(tmp_path: Path) -> None:
    rows = [{"prompt": "a", **({"cfg_scale": -1} if number % 2 else {"file": "x"})} for number in range(12)]

    with pytest.raises(InvalidRequest) as caught:
        entries(write(tmp_path / "job.jsonl", *rows))

    told = [line.partition(":")[0].split()[-1] for line in str(caught.value).splitlines()[1:]]
    assert told == [str(number) for number in range(1, 13)]


def test_a_problem_of_very_many_rows_does_not_hide_the_others(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "hieght": 64, "file": f"{number}.png"} for number in range(300)]

    with pytest.raises(InvalidRequest) as caught:
        entries(write(tmp_path / "job.jsonl", *rows, {"prompt": "a", "seed": -1}))

    first, typo, seed = str(caught.value).splitlines()
    assert first == "the job cannot be drawn, 301 problems:"
    assert typo.startswith("  job.jsonl, line 1: there is no setting called 'hieght'")
    assert typo.endswith(" So in 299 rows more.")
    assert seed.startswith("  job.jsonl, line 301: seed must be")


def test_what_a_row_says_of_a_setting_that_is_swept_over_for_all_is_told_to_be_idle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = write(tmp_path / "job.jsonl", {"prompt": "a", "guidance_scale": 3}, {"prompt": "b"})

    found = entries(job, sweeps={"cfg_scale": "1,2"})

    assert len(found) == 4
    assert caplog.messages == ["cfg_scale is swept over for all rows; what 1 of them say of it has no effect"]


def test_null_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    names = ("file", "size", "num_images_per_prompt", "seed", "sweep", "cfg_scale")

    (found,) = entries(write(tmp_path / "job.jsonl", {"prompt": "a", **dict.fromkeys(names)}))

    assert (found.file, dict(found.shared)) == (None, {"cfg_scale": None})


def test_what_a_pipeline_knows_is_told_with_all_the_rest(tmp_path: Path) -> None:
    def check(request: Any) -> None:
        if request.scheduler == "nope":
            raise InvalidRequest("there is no scheduler called nope.")

    with pytest.raises(InvalidRequest, match=r"line 1: cfg_scale(.|\n)*line 1: there is no scheduler called nope"):
        entries(write(tmp_path / "job.jsonl", {"prompt": "a", "scheduler": "nope", "cfg_scale": -1}), check=check)


def test_a_quote_that_is_not_closed_does_not_take_the_rows_after_it(tmp_path: Path) -> None:
    job = tmp_path / "job.csv"
    job.write_text('prompt,seed\n"a fox,1\na cat,2\n')

    with pytest.raises(InvalidRequest, match="is no row of a table"):
        entries(job)


def test_names_of_settings_are_text() -> None:
    with pytest.raises(InvalidRequest, match="request 1 is neither a request nor a mapping of settings"):
        entries([{"prompt": "a", 3: 1}])

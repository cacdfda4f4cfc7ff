"""The benchmarks run at toy size and say what they should; how long anything takes is not tested."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks import batch, denoise, download, full_size, full_size_mixing, full_size_ours, load, lora_memory
from benchmarks.measure import Recorder, Spread
from benchmarks.published_files import CLIP, DIT, EMBEDDINGS, T5, VAE, shapes, write_published
from benchmarks.sizes import FULL, SIZES
from diffsynth.hub.bundled import files_of

LAYOUTS = Path(__file__).parents[2] / "shared" / "facts" / "layouts"
PUBLISHED = {
    CLIP: "original_clip_text_encoder_bin",
    T5: "original_mt5_bin",
    DIT: "original_dit_v1.0_v1.1",
    VAE: "sdxl_vae_diffusers",
}


def test_the_load_benchmark_measures_both_libraries_on_the_same_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--size", "tiny", "--repeats", "1", "--warm-up", "0", "--dtypes", "float32", "--threads", "1"]

    report = load.main([*few, "--folder", str(tmp_path), "--json", str(tmp_path / "load.json")])

    cases = [(row["library"], row["files"], row["dtype"]) for row in report["cases"]]
    assert len(set(cases)) == len(cases) == 3
    assert len({row["runs"][0]["values"] for row in report["cases"]}) == 1
    assert all(row[name]["count"] == 1 for row in report["cases"] for name in (*load.TIMES, *load.SIZES_MB))
    assert report["page_cache"] == "warm"
    assert report["environment"]["threads"] == 1
    assert json.loads((tmp_path / "load.json").read_text("utf-8")) == report
    assert "median of 1" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["load.json"]


def test_the_denoise_benchmark_compares_three_ways_that_agree(capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()

    report = denoise.main(
        ["--size", "tiny", "--pixels", "64", "96", "--repeats", "2", "--threads", str(threads), "--bound", "1e-5"]
    )

    ways = ["plain forward", "after plan", "Diffusers", "the plan, once"]
    assert [(row["pixels"], row["way"]) for row in report["measured"]] == [(p, way) for p in (64, 96) for way in ways]
    assert all(row["ms"]["count"] == 2 for row in report["measured"])
    plain, planned = report["measured"][:2]
    assert planned["operators"] < plain["operators"]
    assert "after plan" in capsys.readouterr().out


def test_the_denoise_benchmark_fails_where_results_differ() -> None:
    arguments = ["--size", "tiny", "--pixels", "64", "--repeats", "1", "--threads", str(torch.get_num_threads())]

    with pytest.raises(SystemExit, match="not the same as Diffusers"):
        denoise.main([*arguments, "--bound", "0"])


def test_the_download_benchmark_fetches_in_each_way(capsys: pytest.CaptureFixture[str]) -> None:
    download.main(["--megabytes", "1", "--repeats", "1"])

    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[2:]] == list(download.WAYS)


def test_the_lora_benchmark_measures_what_attaching_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = lora_memory.main(["--size", "tiny", "--rank", "4", "--folder", str(tmp_path)])

    config = SIZES["tiny"].dit
    hidden, text, t5 = config.hidden_size, config.text_dim, config.t5_dim
    values = 4 * (config.depth * ((hidden + 3 * hidden) + 3 * 2 * hidden + (text + 2 * hidden)) + 2 * t5)
    assert report["layers"] == 5 * config.depth + 1
    assert report["lora_mb"] == 2 * values / 1e6
    assert report["mapped"]
    assert "growth when it is attached" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_the_lora_benchmark_fails_where_more_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"denoiser_mb": 9.0, "mapped": True, "layers": 1, "lora_mb": 1.0, "attached_mb": 9.0, "detached_mb": 0.0}
    monkeypatch.setattr(lora_memory, "measure", lambda *_: found)

    with pytest.raises(SystemExit, match=r"1\.0 MB of LoRA took 9\.0 MB of memory"):
        lora_memory.main(["--size", "tiny", "--folder", str(tmp_path)])


@pytest.mark.skipif(not files_of(batch.MODEL_ID), reason="the bundled model is not in this checkout")
def test_the_batch_benchmark_draws_the_same_images_on_both_sides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--requests", "5", "--side", "64", "--steps", "2", "--repeats", "1", "--threads", "1"]

    report = batch.main([*few, "--json", str(tmp_path / "batch.json")])

    assert report["difference_to_alone"] <= 1
    assert report["difference_to_theirs"] <= 1
    ways = ["diffsynth batch, one process", "diffsynth batch, a shard per processor"]
    assert list(report["images_per_second"]) == [*ways, batch.THEIRS]
    assert list(report["gains"]) == ways
    assert json.loads((tmp_path / "batch.json").read_text("utf-8")) == report
    assert "images a second" in capsys.readouterr().out


def test_a_fifth_of_the_requests_of_the_batch_benchmark_are_copies() -> None:
    rows = [tuple(row.items()) for row in batch.Task(256, 128, 20).rows()]

    assert (len(rows), len(set(rows)), len({dict(row)["prompt"] for row in rows})) == (256, 205, 64)


def test_the_full_size_proof_passes_at_toy_size_and_removes_its_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full_size.main(["--size", "tiny", "--side", "64", "--folder", str(tmp_path)])

    report = json.loads((tmp_path / full_size.RESULT).read_text("utf-8"))
    assert set(report["compared"]) == {"clip", "t5", "latents", "picture"}
    stages = [stage["name"] for stage in report["ours"]["stages"]]
    assert stages[0] == "import"
    assert stages[-4:] == ["encode prompts", "plan", "denoise", "decode"]
    assert sum(name.startswith("load ") for name in stages) == 4
    assert not (tmp_path / "models").exists()
    assert "Largest differences" in capsys.readouterr().out


def test_both_models_at_toy_size_share_one_autoencoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full_size_mixing.main(["--size", "tiny", "--side", "64", "--folder", str(tmp_path)])

    said = capsys.readouterr().out
    assert "bert_clip, mt5, hunyuan_dit, autoencoder_kl, unet, clip, clip: one manager" in said
    assert "draw one step with SDXL" in said
    assert [path.name for path in tmp_path.iterdir()] == [full_size_mixing.RESULT]


def test_the_full_size_proof_is_skipped_with_a_sentence_where_there_is_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(full_size, "NEEDED_DISK", 1e30)

    full_size.main(["--folder", str(tmp_path)])

    assert capsys.readouterr().out.startswith("skipped: ")
    assert not any(tmp_path.iterdir())


def test_the_proof_runs_the_program_of_the_readme_word_for_word() -> None:
    program = full_size_ours.readme_program(256)

    lines = full_size_ours.README.read_text("utf-8").splitlines()
    changed = [line for line in program.splitlines() if line not in lines]
    assert len(changed) == 2  # where the manager is made, and where the pipeline is called
    assert 'torch_dtype=torch.float32, device="cpu"' in changed[0]
    assert "num_inference_steps=2, height=256, width=256" in changed[1]


def test_the_proof_says_what_a_changed_readme_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "README.md"
    changed.write_text("```python\nprint()\n```\n", "utf-8")
    monkeypatch.setattr(full_size_ours, "README", changed)

    with pytest.raises(ValueError, match=r"README\.md has 'torch_dtype=torch\.float16' 0 times"):
        full_size_ours.readme_program(256)


def test_a_difference_above_its_bound_fails_the_proof() -> None:
    good = {"difference": 1.0, "bound": 2.0, "spread": 40.0}

    full_size.check({"picture": good})
    with pytest.raises(SystemExit, match="latents differs by 3"):
        full_size.check({"latents": {**good, "difference": 3.0}, "picture": good})
    with pytest.raises(SystemExit, match="differs by nan"):
        full_size.check({"latents": {**good, "difference": float("nan")}, "picture": good})
    with pytest.raises(SystemExit, match="one colour"):
        full_size.check({"picture": {**good, "spread": 0.0}})


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_files_have_the_published_keys_and_shapes(name: str) -> None:
    path = LAYOUTS / f"{PUBLISHED[name]}.tsv"
    if not path.is_file():
        pytest.skip("the lists of published keys are not beside this repository")

    rows = [line.partition("\t") for line in path.read_text("utf-8").splitlines()]

    assert shapes(FULL)[name] == {key: tuple(int(side) for side in text.split(",") if side) for key, _, text in rows}


def test_the_embedding_is_in_the_file_once(tmp_path: Path) -> None:
    files = write_published(tmp_path, SIZES["tiny"])

    state = torch.load(next(path for path in files if path.parent.name == "mt5"), weights_only=True)

    assert {state[name].data_ptr() for name in EMBEDDINGS} == {state["shared.weight"].data_ptr()}
    assert state["lm_head.weight"].data_ptr() != state["shared.weight"].data_ptr()


def test_stages_in_a_row_with_one_name_are_added_up() -> None:
    recorder = Recorder()

    for name in ("open", "open", "load"):
        with recorder.stage(name):
            pass

    assert [stage["name"] for stage in recorder.summary()] == ["open", "load"]
    assert recorder.summary()[0]["seconds"] == sum(stage.seconds for stage in recorder.stages[:2])


def test_a_spread_has_the_middle_value() -> None:
    assert Spread.of([3.0, 1.0, 8.0]) == Spread(3.0, 1.0, 8.0, 3)

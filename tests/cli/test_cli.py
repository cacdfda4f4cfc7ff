"""The command line, run as a user does: arguments in, text, files and exit codes out."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from diffsynth.cli import run
from diffsynth.models import mt5
from diffsynth.models.mt5.config import MT5Config
from diffsynth.pipelines.recipe import read_recipe
from examples.random_models import write_models

SMALL = ["--height", "64", "--width", "64", "--steps", "2", "--device", "cpu"]


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return bytes(image.convert("RGB").tobytes())


def test_inspect_names_every_network_of_a_release(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["inspect", str(models)])

    out = capsys.readouterr().out
    assert code == 0
    for expected in ("hunyuan_dit v1.2", "bert_clip", "mt5", "autoencoder_kl", "stays unread", "hidden_size=48"):
        assert expected in out


def test_inspect_names_the_networks_that_a_pipeline_still_needs(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["inspect", str(models / "model"), str(models / "mt5")])
    some = capsys.readouterr().out
    run(["inspect", str(models)])
    every = capsys.readouterr().out

    assert "HunyuanDiTImagePipeline still needs: bert_clip, autoencoder_kl" in some
    assert "HunyuanDiTImagePipeline has every network it needs" in every


def test_inspect_prints_json_with_the_promised_keys(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = models / "model" / "pytorch_model_ema.pt"

    code = run(["inspect", str(file), "--json", "--verify"])

    (row,) = json.loads(capsys.readouterr().out)["files"]
    assert code == 0
    assert {"path", "bytes", "networks", "unclaimed", "error"} <= row.keys()
    assert row["path"] == str(file)
    assert row["bytes"] == file.stat().st_size
    assert row["error"] is None
    (network,) = row["networks"]
    assert {"family", "layout", "version", "dtype", "parameters", "config"} <= network.keys()
    assert (network["family"], network["layout"], network["version"]) == ("hunyuan_dit", "original", "v1.2")
    assert network["config"]["depth"] == 6


def test_inspect_counts_what_is_used_of_a_file(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["inspect", str(models / "mt5"), "--json"])

    ((network,),) = [row["networks"] for row in json.loads(capsys.readouterr().out)["files"]]
    assert network["left_out"] == 2
    encoder = mt5.FAMILY.build_on_meta(MT5Config(**network["config"]))
    assert network["parameters"] == sum(weight.numel() for weight in encoder.parameters())


def test_inspect_fails_when_one_of_several_files_is_bad(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.safetensors"
    page.write_text("<!DOCTYPE html><html>log in</html>")

    code = run(["inspect", str(models / "mt5"), str(page), "--json"])

    good, bad = json.loads(capsys.readouterr().out)["files"]
    assert code == 1
    assert good["error"] is None
    assert "HTML" in bad["error"]


def test_inspect_shows_the_folded_header_of_an_unknown_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({f"layers.{i}.weight": torch.zeros(2, 3) for i in range(4)}, tmp_path / "odd.safetensors")

    code = run(["inspect", str(tmp_path / "odd.safetensors")])

    out = capsys.readouterr().out
    assert code == 1
    assert "4 x layers.{i}.weight (2, 3)" in out
    assert "not recognised" in out


def test_generate_writes_pictures_with_recipes_that_draw_them_again(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = ["--prompt", "一只獾", "--prompt", "a cat"]
    code = run(["generate", *prompts, "--model", str(models), *SMALL, "--seed", "5", "-o", str(tmp_path / "out.png")])
    first, second = tmp_path / "out-0001.png", tmp_path / "out-0002.png"
    again = run(["generate", "--like", str(second), "-o", str(tmp_path / "again.png")])

    assert (code, again) == (0, 0)
    assert "seed 5" in capsys.readouterr().out
    assert pixels(first) != pixels(second)
    assert pixels(tmp_path / "again.png") == pixels(second)
    with Image.open(second) as image:
        assert image.info["parameters"].startswith(
            "a cat\nSteps: 2, Sampler: ddim, CFG scale: 7.5, Seed: 6, Size: 64x64"
        )


def test_generate_like_takes_new_settings_over_those_of_the_recipe(models: Path, tmp_path: Path) -> None:
    run(["generate", "--prompt", "a", "--model", str(models), *SMALL, "--seed", "1", "-o", str(tmp_path / "a.png")])

    code = run(["generate", "--like", str(tmp_path / "a.png"), "--seed", "2", "-o", str(tmp_path / "b.png")])

    assert code == 0
    with Image.open(tmp_path / "b.png") as image:
        assert "Seed: 2," in image.info["parameters"]
    assert pixels(tmp_path / "a.png") != pixels(tmp_path / "b.png")


def test_generate_like_draws_with_everything_that_the_recipe_names(models: Path, tmp_path: Path) -> None:
    vocabularies = tmp_path / "vocabularies"
    vocabularies.mkdir()
    (vocabularies / "vocab.txt").write_bytes((models / "tokenizer" / "vocab.txt").read_bytes())
    (vocabularies / "spiece.model").write_bytes((models / "mt5" / "spiece.model").read_bytes())
    first = ["--conventions", "original", "--beta-end", "0.02", "--dtype", "bfloat16", "--spacing", "trailing"]
    first += ["--scheduler", "dpm++2m", "--clip-tokenizer", str(vocabularies), "--t5-tokenizer", str(vocabularies)]
    run(["generate", "--prompt", "a", "--model", str(models), *SMALL, *first, "-o", str(tmp_path / "a.png")])

    code = run(["generate", "--like", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")])

    one, other = read_recipe(tmp_path / "a.png"), read_recipe(tmp_path / "b.png")
    assert code == 0
    assert one == other
    assert (one["conventions"], one["beta_end"], one["models"][0]["dtype"]) == ("original", 0.02, "bfloat16")
    assert [Path(each["path"]).parent for each in one["vocabularies"]] == [vocabularies] * 2
    assert pixels(tmp_path / "a.png") == pixels(tmp_path / "b.png")


def test_generate_like_takes_an_option_that_says_what_is_usual(models: Path, tmp_path: Path) -> None:
    unusual = ["--tiled", "--tile-size", "3", "--tile-stride", "2", "--clip-skip", "2", "--guidance-rescale", "0.5"]
    run(["generate", "--prompt", "a", "--model", str(models), *SMALL, *unusual, "-o", str(tmp_path / "a.png")])
    usual = ["--no-tiled", "--tile-size", "64", "--tile-stride", "32", "--clip-skip", "1", "--guidance-rescale", "0"]

    code = run(["generate", "--like", str(tmp_path / "a.png"), *usual, "-o", str(tmp_path / "b.png")])

    request = read_recipe(tmp_path / "b.png")["request"]
    assert code == 0
    assert [request[name] for name in ("tiled", "tile_size", "clip_skip", "guidance_rescale")] == [False, 64, 1, 0]


def test_generate_like_tells_which_file_is_another(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(["generate", "--prompt", "a", "--model", str(models), *SMALL, "-o", str(tmp_path / "a.png")])
    (other, *_) = write_models(tmp_path / "other", seed=4)

    code = run(
        ["generate", "--like", str(tmp_path / "a.png"), "--model", str(other.parents[1]), "-o", str(tmp_path / "b.png")]
    )

    assert code == 0
    assert "pytorch_model_ema.pt is not the file that the image was drawn with" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["inspect"], ["generate", "--prompt", "a", "--device", "cpu", "--model"]])
def test_a_kind_for_a_path_that_is_not_there_is_refused(
    command: list[str], models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run([*command, str(models), "--as", "elsewhere=mt5"])

    assert code == 1
    assert "--as names elsewhere, which is not among the files" in capsys.readouterr().err


def test_a_kind_for_a_folder_holds_for_its_parts(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["inspect", str(models), "--as", f"{models}=mt5", "--json"])

    rows = json.loads(capsys.readouterr().out)["files"]
    assert code == 1
    assert [bool(row["error"]) for row in rows] == [not row["path"].endswith("mt5") for row in rows]


def test_generate_starts_from_a_picture(models: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "orange").save(tmp_path / "start.png")
    start = ["--input-image", str(tmp_path / "start.png"), "--denoising-strength", "0.5"]

    code = run(["generate", "--prompt", "a", "--model", str(models), *SMALL, *start, "-o", str(tmp_path / "a.png")])

    assert code == 0
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (64, 64)
    assert run(["generate", "--like", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "-o", "x.png"], "give a --prompt"),
        (["generate", "--prompt", "a", "-o", "x.jpg"], "must end in .png"),
        (["generate", "--prompt", "a", "--dtype", "int3", "--device", "cpu"], "--dtype must be one of"),
        (["generate", "--prompt", "a", "--device", "warp"], "'warp' cannot be used here"),
        (["generate", "--prompt", "a", "--model", "absent.pt", "--device", "cpu"], "absent.pt"),
        (["generate", "--like", "absent.png"], "absent.png"),
        (["generate", "--prompt", "a", "--device", "cpu"], "are not in place"),
    ],
)
def test_mistakes_end_in_one_clear_message_and_exit_code_1(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    code = run(arguments)

    error = capsys.readouterr().err
    assert code == 1
    assert words in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("*.png"))


def test_debug_shows_where_an_error_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["generate", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_misspelt_option_is_exit_code_2() -> None:
    assert run(["generate", "--promt", "a"]) == 2


def test_a_missing_network_is_named_before_anything_is_drawn(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["generate", "--prompt", "a", "--model", str(models / "model"), "--device", "cpu"])

    assert code == 1
    assert "not loaded: bert_clip and mt5 and autoencoder_kl" in capsys.readouterr().err


def test_env_reports_versions_and_devices(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["env", "--json"])

    facts = json.loads(capsys.readouterr().out)
    assert code == 0
    assert facts["packages"]["torch"]
    assert facts["machine"]["device"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_signal_stops_within_a_step_and_leaves_nothing_behind(
    number: signal.Signals, code: int, models: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "diffsynth", "generate", "--prompt", "a", "--model", str(models), "--verbose"]
    command += ["--height", "256", "--width", "256", "--steps", "1000", "--device", "cpu", "-o", str(out / "x.png")]
    environment = os.environ | {"DIFFSYNTH_CACHE": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "noise schedule" not in process.stderr.readline():
            assert process.poll() is None
        time.sleep(0.5)

        process.send_signal(number)
        _, error = process.communicate(timeout=60)

    assert process.returncode == code
    assert "no unfinished file was left behind" in error
    assert "Traceback" not in error
    assert not out.exists()


def test_help_imports_neither_torch_nor_transformers() -> None:
    script = (
        "import sys; from diffsynth.cli import run; run(['generate', '--help']); run(['--help']); "
        "print(sorted({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stdout.splitlines()[-1] == "[]"
    assert "--cfg-scale" in done.stdout

"""``diffsynth batch``, run as a user does."""

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

from diffsynth.batch.progress import Progress
from diffsynth.cli import run
from diffsynth.cli.batch import progress_line
from diffsynth.cli.choice import Choice
from diffsynth.cli.costs import duration
from diffsynth.cli.stopping import Stopped, StoppedAtOnce, stopping

REPO = Path(__file__).parents[2]
SMALL = ["--height", "64", "--width", "64", "--steps", "1", "--device", "cpu", "--cfg-scale", "1"]


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.jsonl"
    rows = [{"prompt": "a cat"}, {"prompt": "一只熊猫", "cfg_scale": 2, "seed": 5}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def batch(models: Path, job: Path, output: Path, *more: object) -> int:
    return run(["batch", str(job), "--model", str(models), *SMALL, "-o", str(output), *map(str, more)])


def test_a_job_becomes_a_folder_and_the_same_command_goes_on(
    models: Path, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    codes = [batch(models, job, out, "--sweep", "seed=1,2", "--names", "{row}-{seed}.png") for _ in range(2)]

    assert codes == [0, 0]
    assert sorted(path.name for path in out.glob("*.png")) == ["0-1.png", "0-2.png", "1-1.png", "1-2.png"]
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [f"{out}: 4 drawn, 0 were there", f"{out}: 0 drawn, 4 were there"]
    assert "0 of 4 images" in shown.err


def test_a_dry_run_says_what_it_takes_and_draws_nothing(
    models: Path, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["--low-memory", "--gpus", "8"]):
        assert batch(models, job, tmp_path / "out", "--dry-run", *more) == 0

    told = capsys.readouterr().out
    names = [line[:12].strip() for line in told.splitlines()]
    known = ["images", "texts", "groups", "operations", "weights", "memory", "", "", "", "sample", "time"]
    assert names == [*known, *known, "devices", ""]
    assert " without --low-memory, and " in told
    assert " with --low-memory, and " in told
    assert not list(tmp_path.glob("out/*"))


def test_an_image_of_a_job_is_that_of_generate(models: Path, job: Path, tmp_path: Path) -> None:
    out, one = tmp_path / "out", tmp_path / "one.png"
    assert batch(models, job, out, "--exact", "--format", "files", "--shard", "1/2") == 0
    (path,) = out.glob("*.png")
    assert path.name == "000001-5.png"

    assert run(["generate", "--like", str(path), "--device", "cpu", "-o", str(one)]) == 0

    with Image.open(path) as first, Image.open(one) as second:
        assert first.tobytes() == second.tobytes()


def test_what_is_wrong_is_told_before_networks_are_loaded(
    models: Path, job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Choice, "pipeline")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "steps": 1}\n{"cfg_scale": 2}\n')
    cases: list[tuple[list[object], Path, str]] = [
        ([], bad, "bad.jsonl, line 2: has no prompt"),
        ([], tmp_path / "absent.jsonl", "absent.jsonl"),
        (["--shard", "2/2"], job, "a shard is I/N"),
        (["--sweep", "seed"], job, "--sweep is NAME=VALUES"),
        (["--sweep", "seed=1", "--sweep", "seed=2"], job, "--sweep names seed twice"),
        (["--sweep", "cfg_scale=1,2"], job, "cfg_scale is given, and cfg_scale is swept over"),
        (["--scheduler", "nope"], job, "job.jsonl, line 2: "),
        (["--names", "{nope}.png"], job, "has a field 'nope'"),
        (["--format", "zip"], job, "format is 'zip'"),
        (["--quality", "0"], job, "quality must be a whole number from 1"),
        (["--ledger", "mine"], job, "a ledger is called ledger.jsonl"),
        (["-o", str(job)], job, "job.jsonl is not a folder"),
        (["-o", ""], job, "'' is no folder for images"),
        (
            ["--report", "/dev/null/report.html"],
            job,
            "written into /dev/null: /dev/null is not a folder",
        ),
        (["--exact", "--batch-size", "2"], job, "contradict each other"),
        (["--lora-partly"], job, "--lora-partly goes with --lora"),
        (["--crop", "1", "2"], job, "--crop is not an option of HunyuanDiTImagePipeline"),
    ]

    for more, path, message in cases:
        assert batch(models, path, tmp_path / "out", *more) == 1, more
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_it_ends_within_a_step_and_goes_on_later(
    models: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    job, out = tmp_path / "job.txt", tmp_path / "out"
    job.write_text("".join(f"prompt {number}\n" for number in range(200)))
    command = [sys.executable, "-m", "diffsynth", "batch", str(job), "--model", str(models), *SMALL, "-o", str(out)]
    process = subprocess.Popen(
        [*command, "--steps", "20", "--batch-size", "2"],
        cwd=REPO,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while process.poll() is None and len(list(out.glob("*.png"))) < 3:
        time.sleep(0.02)

    process.send_signal(number)
    _, err = process.communicate()

    assert process.returncode == code, err
    assert err.splitlines()[-1] == "stopped; the same command goes on from here."
    drawn = {path.name for path in out.glob("*.png")}
    lines = [json.loads(line) for line in (out / "ledger.jsonl").read_text().splitlines()]
    assert {name for line in lines for name in line.get("files", ())} == drawn
    assert 3 <= len(drawn) < 200
    assert not list(out.glob(".*"))


def test_progress_is_one_line() -> None:
    progress = Progress(10, drawn=3, failures={"a.png": "why"}, started=time.perf_counter() - 8)

    assert progress_line(progress).startswith("4 of 10 images, 0.5 a second, 12 s left, 1 failed")
    assert [duration(seconds) for seconds in (45, 720, 12_000, 580_000)] == ["45 s", "12 min", "3 h 20 min", "6.7 days"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_asked_to_stop_before_the_first_step_or_twice_it_stops_at_once(number: signal.Signals, code: int) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    with stopping() as check, pytest.raises(StoppedAtOnce) as early:
        signal.raise_signal(number)
    with stopping() as check:
        check(Progress(1))
        signal.raise_signal(number)
        with pytest.raises(Stopped) as asked:
            check(Progress(1))
        with pytest.raises(StoppedAtOnce) as twice:
            signal.raise_signal(number)

    assert [each.value.exit_code for each in (early, asked, twice)] == [code] * 3
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_options_without_effect_are_told_of(
    models: Path, job: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    assert batch(models, job, tmp_path / "out", "--dry-run", "--verify", "--shard", "0/2", "--quality", "50") == 0

    err = capsys.readouterr().err + caplog.text
    assert "--dry-run tells of the whole job; without effect: --shard, --verify." in err
    assert "--quality has no effect, for every image is a PNG" in err
    assert not (tmp_path / "out").exists()

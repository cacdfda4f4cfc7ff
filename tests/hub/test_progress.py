"""One progress display for a whole job, on a terminal only."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path

import pytest

from diffsynth import download_model, download_models
from diffsynth.hub.progress import DownloadReport, Progress
from tests.hub.standin import FILE, Hub

MT5 = "t2i/mt5/pytorch_model.bin"


def test_progress_is_told_for_the_whole_job(hub: Hub, files: dict[str, bytes], tmp_path: Path) -> None:
    reports: list[DownloadReport] = []
    hub.fault("drop", f"{FILE['ModelScope']}pytorch_model_ema")
    hub.fault("corrupt", f"{FILE['ModelScope']}diffusion_pytorch_model")

    download_models("HunyuanDiT", local_dir=tmp_path, on_progress=reports.append)

    last = reports[-1]
    wanted = sum(len(content) for name, content in files.items() if name != "README.md")
    assert (last.files_done, last.files, last.bytes_done, last.bytes) == (6, 6, wanted, wanted)
    assert last.rate > 0


def test_nothing_is_shown_where_there_is_no_terminal(
    hub: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    download_models("HunyuanDiT", local_dir=tmp_path)

    assert capfd.readouterr() == ("", "")


def test_patterns_that_overlap_fetch_a_file_once(hub: Hub, tmp_path: Path) -> None:
    reports: list[DownloadReport] = []

    found = download_model(
        "modelscope/HunyuanDiT",
        ["t2i/mt5/*", MT5],
        local_dir=tmp_path,
        on_progress=reports.append,
    )

    assert len(found) == 2
    assert reports[-1].bytes_done == reports[-1].bytes == 605_000


def test_files_of_one_name_in_several_repositories_are_counted_each(hub: Hub, tmp_path: Path) -> None:
    for version in ("v1.1", "v1.2"):
        content = version.encode() * 50_000
        hub.repositories[f"Tencent-Hunyuan/HYDiT-ControlNet-{version}"] = {"pytorch_model_canny_distill.pt": content}
    reports: list[DownloadReport] = []

    names = [f"HunyuanDiT-{version}-ControlNet-Canny" for version in ("v1.1", "v1.2")]
    download_models(names, local_dir=tmp_path, on_progress=reports.append)

    assert reports[-1].bytes_done == reports[-1].bytes == 400_000
    assert all(a.bytes_done <= b.bytes_done for a, b in pairwise(reports))


def test_a_terminal_shows_file_bytes_and_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)

    with Progress([1000, 3000], None) as progress:
        progress.begin("vae/a.bin")
        progress.end(1000)
        progress.begin("unet/b.bin")

    shown = terminal.getvalue()
    assert "2/2 b.bin:  25%" in shown
    assert "1.00k/4.00k" in shown
    assert "B/s" in shown

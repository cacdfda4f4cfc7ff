"""Downloads in processes that are killed, that run at once, that run out of disk, and that may open no socket."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.hub.conftest import V1_0, published
from tests.hub.standin import FILE, HUGGING_FACE, MODELSCOPE, Hub

REPO = Path(__file__).parents[2]
CHUNK = 8 << 20  # bytes that may be fetched twice after each kill
KILLS = int(os.environ.get("DIFFSYNTH_TEST_KILLS", "12"))


def client(folder: Path, *hubs: str, program: str = "", **more: str) -> subprocess.Popen[str]:
    """Start a download in a process of its own."""
    command = ["-c", program] if program else ["-m", "tests.hub.client", str(folder), *hubs]
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=REPO,
        env={**os.environ, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(folder: Path, *hubs: str) -> None:
    """Download in a process of its own, and well."""
    process = client(folder, *hubs)
    _, err = process.communicate()
    assert process.returncode == 0, err


def everything(folder: Path) -> dict[str, bytes]:
    """Return what lies in a folder, but for the record."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".diffsynth.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def expected(files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"HunyuanDiT/{name}": content for name, content in files.items() if name != "README.md"}


@pytest.mark.parametrize("on", ["ModelScope", "HuggingFace"])
def test_a_download_that_is_killed_again_and_again_loses_at_most_a_chunk_each_time(
    on: str, hub: Hub, tmp_path: Path
) -> None:
    files = published(size=450_000 * KILLS)
    hub.publish(dict.fromkeys(V1_0, files))
    hub.fault("slow", FILE[on], times=-1)
    draw = random.Random(7)

    killed = 0
    for _ in range(KILLS):
        process = client(tmp_path / "models", on)
        time.sleep(draw.uniform(0.5, 2.5))
        process.kill()
        _, err = process.communicate()
        assert process.returncode in (-9, 0), err
        if process.returncode == 0:
            break
        killed += 1
    hub.faults.clear()
    last = client(tmp_path / "models", on)
    _, err = last.communicate()

    assert last.returncode == 0, err
    assert everything(tmp_path / "models") == expected(files)
    assert killed > KILLS / 2
    sent = sum(request.sent for request in hub.requests(FILE[on]))
    size = sum(map(len, expected(files).values()))
    assert sent <= size + killed * CHUNK, f"{sent - size} bytes were sent twice, after {killed} kills"
    assert twice(hub, on) <= killed * CHUNK


def twice(hub: Hub, on: str) -> int:
    """Return how many bytes were asked for again, file by file: where a request begins, the one before had ended."""
    again = 0
    ends: dict[str, int] = {}
    for request in hub.requests(FILE[on]):
        if request.status in (200, 206):
            name = request.line.partition("?")[2]
            start = int(request.range.removeprefix("bytes=").removesuffix("-") or 0)
            again += max(0, ends.get(name, 0) - start)
            ends[name] = start + request.sent
    return again


def test_eight_processes_make_one_transfer_of_each_file(hub: Hub, tmp_path: Path) -> None:
    files = published(size=1_000_000)
    hub.publish(dict.fromkeys(V1_0, files))

    processes = [client(tmp_path / "models") for _ in range(8)]
    results = [(process.communicate(), process.returncode) for process in processes]

    assert [code for _, code in results] == [0] * 8, results
    assert len({out for (out, _), _ in results}) == 1
    assert everything(tmp_path / "models") == expected(files)
    bodies = [request for request in hub.requests(FILE["ModelScope"]) if request.status in (200, 206)]
    assert len(bodies) == len(expected(files))
    assert hub.requests(HUGGING_FACE) == []


def hear_ctrl_c() -> None:
    """Undo what a shell does to commands in the background: they and their children ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_in_the_middle_of_a_file_is_one_line_and_the_next_run_goes_on(hub: Hub, tmp_path: Path) -> None:
    files = published(size=2_000_000)
    hub.publish(dict.fromkeys(V1_0, files))
    fault = hub.fault("slow", FILE["ModelScope"], times=-1)
    folder = tmp_path / "models"
    command = [sys.executable, "-m", "diffsynth", "download", "HunyuanDiT", "--models", str(folder)]
    process = subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=hear_ctrl_c
    )
    while process.poll() is None and sum(path.stat().st_size for path in folder.rglob("*.part")) < 500_000:
        time.sleep(0.02)

    process.send_signal(signal.SIGINT)
    out, err = process.communicate()

    assert (process.returncode, out, err) == (130, "", "stopped; the same command goes on from here.\n")
    [part] = folder.rglob("*.part")
    assert part.stat().st_size >= 500_000
    fault.times = 0
    hub.log.clear()
    finished(folder)
    assert everything(folder) == expected(files)
    assert hub.requests(FILE["ModelScope"])[0].range.startswith("bytes=")


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
from diffsynth import download_models
from diffsynth.errors import DownloadError
try:
    download_models("HunyuanDiT", "ModelScope", local_dir=sys.argv[1] if len(sys.argv) > 1 else FOLDER)
except DownloadError as error:
    print(error)
"""


def test_a_full_disk_is_explained_and_what_was_fetched_is_kept(
    hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "models"

    full = client(folder, program=FULL.replace("FOLDER", repr(str(folder))))
    out, err = full.communicate()

    assert f"there is no room for {folder}/HunyuanDiT/t2i/mt5/pytorch_model.bin" in out, err
    assert "600,000 bytes" in out
    assert "is kept: make room, then `diffsynth download HunyuanDiT --models" in out
    before = sum(request.sent for request in hub.requests(FILE["ModelScope"]))

    again = client(folder, "ModelScope")
    out, err = again.communicate()

    assert again.returncode == 0, err
    assert everything(folder) == expected(files)
    second = hub.requests(r"cdn/ms/.*mt5/pytorch_model.bin")[-1]
    assert second.range == "bytes=500000-"
    assert before > 500_000


OFFLINE = """
import sys
def refuse(event, arguments):
    if event.startswith("socket."):
        sys.stdout.write(f"{event} {arguments}")
        raise SystemExit(7)
sys.addaudithook(refuse)
from diffsynth import download_models
from diffsynth.errors import DownloadError
try:
    print(download_models("HunyuanDiT", local_dir=FOLDER))
except DownloadError as error:
    print(error)
assert not {"torch", "huggingface_hub", "modelscope_hub"} & {*sys.modules}
"""


@pytest.mark.parametrize("variable", ["DIFFSYNTH_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_opens_no_socket_and_lists_what_is_missing(
    variable: str, hub: Hub, files: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    program = OFFLINE.replace("FOLDER", repr(str(folder)))

    nothing = client(folder, program=program, **{variable: "1"})
    out, err = nothing.communicate()

    assert nothing.returncode == 0, out + err
    assert "offline, and 6 of 6 files are not in place" in out
    assert all(f"{folder}/HunyuanDiT/{name}: not there" in out for name in files if name != "README.md")
    assert f"`diffsynth download HunyuanDiT --models {folder}` fetches them" in out

    finished(folder)
    hub.log.clear()
    complete = client(folder, program=program, **{variable: "1"})
    out, err = complete.communicate()

    assert complete.returncode == 0, out + err
    assert out.count("PosixPath") == 4
    assert hub.log == []


def test_with_everything_in_place_no_socket_is_opened_either(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    finished(folder)

    again = client(folder, program=OFFLINE.replace("FOLDER", repr(str(folder))))
    out, err = again.communicate()

    assert again.returncode == 0, out + err
    assert out.count("PosixPath") == 4
    assert len(hub.requests(MODELSCOPE)) > 0

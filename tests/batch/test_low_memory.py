"""A run whose text encoders leave memory before anything is drawn: the same files, and clear words where texts lack."""

from __future__ import annotations

import errno
import json
import logging
import os
import tempfile
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from diffsynth import HunyuanDiTImagePipeline
from diffsynth.batch import Progress, make_plan, read_entries, run_batch, run_plan
from diffsynth.batch.text_store import TextStore
from diffsynth.cli import run
from diffsynth.errors import Cancelled, InvalidRequest, NonFiniteResult, Paused
from diffsynth.models.clip.model import ClipFeatures
from diffsynth.pipelines.texts import Texts
from tests.pipelines.toy import load_toy, write_toy

from .fake import FakePipeline
from .test_run import JOB, contents, lines

TOLD: tuple[str, ...] = ("key", "files", "sha256", "seed", "rows", "note", "request", "failed")
NAMED: list[dict[str, Any]] = [{"prompt": f"prompt {number}", "seed": number} for number in range(7)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of a toy."""
    return write_toy(tmp_path_factory.mktemp("toy"))


def noted(folder: Path) -> list[dict[str, Any]]:
    """Return what a ledger says but for times."""
    return [{name: line[name] for name in TOLD if name in line} for line in lines(folder)]


class Unreadable(FakePipeline):
    """Cannot encode some texts.

    Args:
        errors: text → what is raised, as often as there are errors for it; the last one from then on.
    """

    def __init__(self, errors: dict[str, list[Exception | None]]) -> None:
        super().__init__()
        self.errors = errors

    def encode(self, text: str) -> torch.Tensor:
        left = self.errors.get(text, [None])
        error = left.pop(0) if len(left) > 1 else left[0]
        if error is not None:
            raise error
        return super().encode(text)


def test_images_and_ledger_are_those_of_an_ordinary_run(paths: list[Path], out: Path) -> None:
    pipe = load_toy(paths)
    networks = [weakref.ref(network) for network in pipe.text_encoders]
    here: list[int] = []

    run_batch(pipe, JOB, out / "ordinary", batch_size=4)
    run_batch(
        pipe, JOB, out / "low", batch_size=4, low_memory=True,
        on_progress=lambda progress: here.append(sum(network() is not None for network in networks)),
    )  # fmt: skip

    assert here == [2, 0, 0, 0, 0, 0, 0, 0]
    assert contents(out / "low") == contents(out / "ordinary")
    assert noted(out / "low") == noted(out / "ordinary")
    assert len(contents(out / "low")) == 7


def test_features_that_memory_has_no_room_for_wait_in_a_file(
    paths: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores: list[TextStore] = []
    add = TextStore.add

    def noticed(store: TextStore, texts: Texts) -> None:
        stores.append(store)
        add(store, texts)

    monkeypatch.setattr(TextStore, "add", noticed)

    run_batch(load_toy(paths), JOB, out / "ordinary", batch_size=4)
    run_batch(load_toy(paths), JOB, out / "low", batch_size=4, low_memory=True, text_bytes=1000)

    assert stores[0].nbytes > 1000
    assert stores[0]._file._rolled  # type: ignore[attr-defined]
    assert contents(out / "low") == contents(out / "ordinary")


def test_it_goes_on_where_a_run_of_either_kind_stopped(paths: list[Path], out: Path) -> None:
    run_batch(load_toy(paths), JOB, out / "whole", batch_size=4)

    def stop(progress: Progress) -> None:
        if progress.drawn == 2:
            raise Cancelled("enough")

    for low in (True, False, True):
        with pytest.raises(Cancelled):
            run_batch(load_toy(paths), JOB, out / "parts", batch_size=4, low_memory=low, on_progress=stop)
    last = run_batch(load_toy(paths), JOB, out / "parts", batch_size=4, low_memory=True)

    assert (last.finished, last.images) == (6, 1)
    assert contents(out / "parts") == contents(out / "whole")


def test_a_pipeline_that_reads_no_more_texts_is_refused_before_anything_is_noted(paths: list[Path], out: Path) -> None:
    pipe = load_toy(paths)
    assert run_batch(pipe, JOB[:2], out, low_memory=True).drawn == 2
    before = (out / "ledger.jsonl").read_bytes()

    for low in (False, True):
        assert run_batch(pipe, JOB[:2], out, low_memory=low).finished == 2
        with pytest.raises(InvalidRequest, match="text encoders of this pipeline were given back"):
            run_batch(pipe, JOB[:3], out, low_memory=low)

    assert (out / "ledger.jsonl").read_bytes() == before


def test_with_nothing_to_draw_the_text_encoders_stay(pipe: HunyuanDiTImagePipeline, out: Path) -> None:
    run_batch(pipe, JOB[:2], out)

    run_batch(pipe, JOB[:2], out, low_memory=True)

    assert pipe.reads_texts


def test_a_text_that_cannot_be_encoded_fails_its_image_as_in_an_ordinary_run(
    out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bad = NonFiniteResult("the text encoder's features", "Look at the file.")

    for name, low in (("ordinary", False), ("low", True)):
        with caplog.at_level(logging.WARNING):
            progress = run_batch(Unreadable({"prompt 2": [bad]}), NAMED, out / name, batch_size=4, low_memory=low)
        assert (progress.drawn, list(progress.failures)) == (6, ["000002-2.png"])

    assert contents(out / "low") == contents(out / "ordinary")
    assert noted(out / "low") == noted(out / "ordinary")
    notes = [line.get("note", "") for line in noted(out / "low")]
    assert sum("not drawn in its batch of 4: NonFiniteResult" in note for note in notes) == 3


def test_without_memory_for_a_text_it_is_tried_once_more(out: Path) -> None:
    none = torch.OutOfMemoryError("no room")

    once = run_batch(Unreadable({"prompt 2": [none, None]}), NAMED, out / "once", low_memory=True)
    never = run_batch(Unreadable({"prompt 2": [none]}), NAMED, out / "never", low_memory=True)

    assert (once.drawn, once.failures) == (7, {})
    assert (never.drawn, never.failures) == (6, {"000002-2.png": "out of memory"})


def test_a_full_disk_ends_the_run_with_one_sentence_and_nothing_is_lost(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = FakePipeline()
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "tempdir", str(out.parent))

        def full(*_: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patched.setattr(tempfile.SpooledTemporaryFile, "write", full)
        with pytest.raises(Paused, match=f"^No space left on device: {out.parent}. 0 of 7 images"):
            run_batch(pipe, NAMED, out, low_memory=True)

    assert pipe.reads_texts
    assert run_batch(pipe, NAMED, out, low_memory=True).drawn == 7


@pytest.mark.parametrize("memory", [0, 10_000])
def test_a_store_gives_back_the_very_values(memory: int) -> None:
    pooled = torch.randn(1, 5, dtype=torch.bfloat16)
    long = ClipFeatures(torch.randn(1, 7, 6, dtype=torch.float16).transpose(1, 2), pooled)
    features = {"long": (long, ClipFeatures(torch.randn(3, 2), None)), "mask": torch.tensor([[True, False]])}

    with TextStore(memory) as store:
        store.add(Texts({"mask": features["mask"]}))
        store.add(Texts({"long": features["long"]}))
        found = Texts(store)

        assert "mask" in found
        assert "other" not in found
        assert torch.equal(found["mask"], features["mask"])  # type: ignore[arg-type]
        first, second = found["long"]
        assert torch.equal(first.hidden, long.hidden)
        assert first.pooled.dtype is torch.bfloat16
        assert torch.equal(first.pooled, pooled)
        assert second.pooled is None
        assert found.nbytes == store.nbytes == 2 + 2 * 42 + 2 * 5 + 4 * 6


def test_a_shard_reads_the_texts_of_its_part(paths: list[Path], out: Path) -> None:
    pipe = load_toy(paths)
    plan = make_plan(pipe, read_entries(JOB, pipe.request_type), names="{index}.png", batch_size=2)

    part = run_plan(pipe, plan, out, choose=lambda units: units[1:], low_memory=True)

    assert part.drawn == 1
    assert [line["request"]["width"] for line in lines(out)] == [48]


def test_the_command_line_has_it_for_one_process(
    paths: list[Path], out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.jsonl"
    job.write_text("".join(json.dumps(row) + "\n" for row in JOB), "utf-8")
    model = paths[0].parents[1]
    command = ["batch", str(job), "--model", str(model), "--device", "cpu", "--low-memory", "-o"]

    assert run([*command, str(out)]) == 0
    assert run([*command, str(tmp_path / "other"), "--workers", "2"]) == 1

    shown = capsys.readouterr()
    assert "7 drawn" in shown.out
    assert "--low-memory is for one process" in shown.err
    assert not (tmp_path / "other").exists()

"""Disks that are full or broken, images that cannot be drawn, memory that is too small."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from diffsynth.batch import Progress, run_batch
from diffsynth.batch.ledger import Ledger
from diffsynth.batch.runner import HOPELESS
from diffsynth.errors import CorruptCheckpoint, DeviceLost, DiffSynthError, InvalidRequest, NonFiniteResult, Paused
from diffsynth.pipelines.request import ImageRequest

from .fake import FakePipeline
from .test_run import contents, lines

JOB: list[dict[str, Any]] = [{"prompt": f"prompt {number}", "seed": number} for number in range(7)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    run_batch(FakePipeline(), JOB, folder, batch_size=2)
    return contents(folder)


def failing(monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> list[int]:
    """Let the operation of this number fail that writes, syncs or names a file; return how many there were."""
    seen = [0]

    def once(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            seen[0] += 1
            if seen[0] == number:
                if function is write and len(arguments[1]) > 1:
                    function(arguments[0], bytes(arguments[1])[: len(arguments[1]) // 2])
                raise OSError(code, os.strerror(code), "the disk")
            return function(*arguments, **more)

        return call

    write = os.write
    for name in ("write", "fsync", "link"):
        monkeypatch.setattr(os, name, once(getattr(os, name)))
    return seen


@pytest.mark.parametrize("kind", ["files", "tar"])
def test_a_disk_that_fails_at_any_write_loses_nothing(
    whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with monkeypatch.context() as patched:
        seen = failing(patched, 0, 0)
        run_batch(FakePipeline(), JOB, tmp_path / "whole", batch_size=2, format=kind)
    writes = seen[0]
    expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir() if path.suffix != ".jsonl"}
    for number in range(1, writes + 2):
        code = (errno.ENOSPC, errno.EIO, errno.EROFS)[number % 3]
        folder = tmp_path / str(number)
        drawn: list[str] = []
        pipe = FakePipeline(on_draw=lambda requests, drawn=drawn: drawn.extend(each.prompt for each in requests))  # type: ignore[misc]
        with monkeypatch.context() as patched:
            failing(patched, number, code)
            with nullcontext() if number > writes else pytest.raises(Paused, match=os.strerror(code)):
                run_batch(pipe, JOB, folder, batch_size=2, format=kind)

        run_batch(pipe, JOB, folder, batch_size=2, format=kind)

        assert {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".jsonl"} == expected
        assert len({line["key"] for line in lines(folder)}) == len(lines(folder)) == len(JOB)
        assert len(drawn) <= len(JOB) + (2 if kind == "files" else len(JOB))


def test_one_sentence_says_that_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    failing(monkeypatch, 18, errno.ENOSPC)

    with pytest.raises(Paused) as caught:
        run_batch(FakePipeline(), JOB, tmp_path, batch_size=2)

    assert str(caught.value).startswith("No space left on device: ")
    assert ". 2 of 7 images of this run are finished and kept;" in str(caught.value)
    assert {name: whole[name] for name in contents(tmp_path)} == contents(tmp_path)


def refusing(*prompts: str) -> Callable[[Sequence[ImageRequest]], None]:
    """Return what fails when one of these prompts is among those to draw."""

    def refuse(requests: Sequence[ImageRequest]) -> None:
        if any(each.prompt in prompts for each in requests):
            raise NonFiniteResult("denoising, step 1 of 1", "It is a poisoned prompt.")

    return refuse


def test_an_image_that_fails_is_noted_and_the_others_are_drawn(tmp_path: Path, whole: dict[str, bytes]) -> None:
    pipe = FakePipeline(on_draw=refusing("prompt 2", "prompt 5"))

    progress = run_batch(pipe, JOB, tmp_path, batch_size=4)

    assert (progress.drawn, sorted(progress.failures)) == (5, ["000002-2.png", "000005-5.png"])
    assert "NonFiniteResult: not a finite number in denoising, step 1 of 1. It is" in progress.failures["000002-2.png"]
    failed = [line for line in lines(tmp_path) if "failed" in line]
    assert [line["request"]["prompt"] for line in failed] == ["prompt 2", "prompt 5"]
    notes = {line["rows"]: line.get("note", "") for line in lines(tmp_path) if "sha256" in line}
    assert notes[2].startswith("not drawn in its batch of 4: NonFiniteResult")
    assert contents(tmp_path).keys() == whole.keys() - {"000002-2.png", "000005-5.png"}


def test_three_failures_set_an_image_aside_until_it_is_asked_for(tmp_path: Path, whole: dict[str, bytes]) -> None:
    bad = FakePipeline(on_draw=refusing("prompt 2"))
    seen: list[tuple[int, int, int]] = []

    for _ in range(4):
        progress = run_batch(bad, JOB, tmp_path, batch_size=2)
        seen.append((progress.images, len(progress.failures), progress.aside))
    healed = run_batch(FakePipeline(), JOB, tmp_path, batch_size=2, retry_failed=True)

    assert seen == [(7, 1, 0), (1, 1, 0), (1, 1, 0), (0, 0, 1)]
    assert healed.drawn == 1
    assert contents(tmp_path) == whole


def test_when_image_after_image_fails_the_run_gives_up(tmp_path: Path) -> None:
    job = [{"prompt": "bad", "seed": number} for number in range(2 * HOPELESS)]

    with pytest.raises(Paused, match=f"the last {HOPELESS} images all failed, this one because: NonFiniteResult"):
        run_batch(FakePipeline(on_draw=refusing("bad")), job, tmp_path, batch_size=2)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), torch.AcceleratorError("CUDA error: out of memory")]
)
def test_without_memory_for_a_batch_it_is_drawn_in_halves(
    tmp_path: Path, whole: dict[str, bytes], error: RuntimeError
) -> None:
    rows: list[int] = []

    def small(requests: Sequence[ImageRequest]) -> None:
        rows.append(len(requests))
        if len(requests) > 2:
            raise error

    progress = run_batch(FakePipeline(on_draw=small), JOB, tmp_path, batch_size=4)

    assert progress.drawn == 7
    assert rows == [4, 2, 2, 2, 1]  # the second batch is not tried whole again
    assert {line["note"] for line in lines(tmp_path)} == {
        "not drawn in its batch of 4: out of memory",
        "not drawn in its batch of 3: out of memory",
    }
    assert contents(tmp_path) == whole


def test_one_image_without_memory_is_a_failure(tmp_path: Path) -> None:
    def none(requests: Sequence[ImageRequest]) -> None:
        raise MemoryError

    progress = run_batch(FakePipeline(on_draw=none), JOB[:2], tmp_path, batch_size=2)

    assert list(progress.failures.values()) == ["out of memory", "out of memory"]


def test_an_accelerator_that_fails_ends_the_run_and_blames_no_image(tmp_path: Path, whole: dict[str, bytes]) -> None:
    def failing(requests: Sequence[ImageRequest]) -> None:
        if requests[0].prompt == "prompt 4":
            raise torch.AcceleratorError("CUDA error: unspecified launch failure\nmore lines")

    with pytest.raises(DeviceLost, match=r"cannot use it any more: CUDA error: unspecified launch failure\. What"):
        run_batch(FakePipeline(on_draw=failing), JOB, tmp_path, batch_size=2)
    progress = run_batch(FakePipeline(), JOB, tmp_path, batch_size=2)

    assert (progress.finished, progress.drawn, progress.failures) == (4, 3, {})
    assert [line for line in lines(tmp_path) if "failed" in line] == []
    assert contents(tmp_path) == whole


def test_weights_that_were_changed_end_the_run(tmp_path: Path) -> None:
    def changed(requests: Sequence[ImageRequest]) -> None:
        if requests[0].prompt == "prompt 4":
            raise CorruptCheckpoint("dit.pt", "was changed")

    with pytest.raises(CorruptCheckpoint):
        run_batch(FakePipeline(on_draw=changed), JOB, tmp_path, batch_size=2)

    assert len(contents(tmp_path)) == 4


def test_an_error_of_our_own_code_is_not_taken_for_a_failure_of_an_image(tmp_path: Path) -> None:
    def wrong(requests: Sequence[ImageRequest]) -> None:
        raise AssertionError("a bug")

    with pytest.raises(AssertionError):
        run_batch(FakePipeline(on_draw=wrong), JOB, tmp_path)


def test_a_name_that_is_taken_while_the_run_goes_is_a_failure_of_that_image(tmp_path: Path) -> None:
    def take(progress: Progress) -> None:
        if progress.drawn == 1:
            (tmp_path / "000001-1.png").write_bytes(b"mine")

    progress = run_batch(FakePipeline(), JOB[:3], tmp_path, on_progress=take)

    assert (tmp_path / "000001-1.png").read_bytes() == b"mine"
    assert list(progress.failures) == ["000001-1.png"]
    assert "No file is replaced" in progress.failures["000001-1.png"]


@pytest.mark.parametrize("torn", [b'{"key": "a", "sha', b'{"key": \n', b"\0\0\0\0", b"\0" * 100_000 + b"\n"])
def test_a_torn_last_line_is_cut_off_and_the_rest_is_kept(tmp_path: Path, torn: bytes) -> None:
    run_batch(FakePipeline(), JOB[:3], tmp_path)
    path = tmp_path / "ledger.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + torn)

    with Ledger(path):
        assert path.read_bytes() == before
    assert run_batch(FakePipeline(), JOB[:3], tmp_path).finished == 3


@pytest.mark.parametrize("damaged", [b"@@@", b'{"key": "a", "sha256": "b"}', b'{"key": [], "failed": "so"}', b"[]"])
def test_a_damaged_line_in_the_middle_costs_nothing_but_itself(tmp_path: Path, damaged: bytes) -> None:
    run_batch(FakePipeline(), JOB[:3], tmp_path)
    path = tmp_path / "ledger.jsonl"
    kept = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([kept[0], damaged, *kept[2:]]))

    progress = run_batch(FakePipeline(), JOB[:3], tmp_path)

    assert (progress.images, progress.finished) == (0, 3)


def test_leftovers_of_a_killed_run_are_removed_and_those_of_others_are_not(tmp_path: Path) -> None:
    mine, other = tmp_path / ".ledger.1234.part", tmp_path / ".ledger-2.1234.part"
    for path in (mine, other):
        path.write_bytes(b"half")

    run_batch(FakePipeline(), JOB[:1], tmp_path)

    assert (mine.exists(), other.exists()) == (False, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": "{index}"}, "must end in one of .png"),
        ({"names": "{nothing}.png"}, "has a field 'nothing'; known are: index, row, key, prompt, seed"),
        ({"names": "{seed.__class__}.png"}, "has a field"),
        ({"names": "\ud800{index}.png"}, "has characters that no file's name should have"),
        ({"names": "a\0{index}.png"}, "has characters that no file's name should have"),
        ({"names": "{index:{seed}}.png"}, "cannot be filled in"),
        ({"names": "{}.png"}, "has a field ''"),
        ({"defaults": 3}, "settings must be a mapping"),
        ({"sweeps": [1]}, "settings must be a mapping"),
        ({"names": 3}, "names must be a template such as .*, not 3"),
        ({"names": b"{index}.png"}, "names must be a template"),
        ({"ledger": 3}, "a ledger is called"),
        ({"names": "../{index}.png"}, "must stay inside the output folder"),
        ({"names": "/tmp/{index}.png"}, "must stay inside"),
        ({"names": "same.png"}, "another image is to have the name same.png too"),
        ({"names": "{index:x}{prompt:d}.png"}, "cannot be filled in"),
        ({"names": ".{index}.png"}, "is one that runs use themselves"),
        ({"names": "ledger.jsonl/{index}.png"}, "is one that runs use themselves"),
        ({"names": "d/" * 400 + "{index}.png"}, "has more than 800 characters"),
        ({"names": "{index:>99999999999999}.png"}, "cannot be filled in"),
        ({"ledger": "../ledger.jsonl"}, "a ledger is called"),
        ({"format": "zip"}, "format is 'zip'; known are: files, tar"),
        ({"exact": True, "batch_size": 2}, "give one of them"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"quality": 0}, "quality must be"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_is_written(
    tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        run_batch(FakePipeline(), JOB, tmp_path / "out", **arguments)

    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_names_of_prompts_are_safe_and_short(tmp_path: Path) -> None:
    job = [{"prompt": "../a/b\\c:*?\n" + "x" * 100, "seed": 1}, {"prompt": "..", "seed": 2}]

    run_batch(FakePipeline(), job, tmp_path, names="{prompt}-{width}-{index}.png")

    assert sorted(contents(tmp_path)) == ["_-16-1.png", "_a_b_c_" + "x" * 33 + "-16-0.png"]


def test_a_ledger_that_cannot_be_opened_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").mkdir()

    with pytest.raises(OSError, match=r"ledger\.jsonl"):
        run_batch(FakePipeline(), JOB, tmp_path)


def test_every_line_of_a_ledger_is_json(tmp_path: Path) -> None:
    run_batch(FakePipeline(), [{"prompt": "一只\u2028熊猫 \\", "seed": 1}], tmp_path)

    first, second = (tmp_path / "ledger.jsonl").read_bytes().splitlines()

    assert json.loads(first)["run"]["images"] == 1
    assert json.loads(second)["request"]["prompt"] == "一只\u2028熊猫 \\"
    assert issubclass(Paused, DiffSynthError)


def test_an_image_cannot_have_the_name_of_the_folder_of_another(tmp_path: Path) -> None:
    job = [{"prompt": "a", "seed": 1, "file": "x.png"}, {"prompt": "b", "seed": 1, "file": "x.png/y.png"}]

    with pytest.raises(InvalidRequest, match=r"x.png/y.png: another image has the name x.png, which is a folder here"):
        run_batch(FakePipeline(), job, tmp_path)


@pytest.mark.parametrize("folder", [None, 3, b"out", "", "a\0b"])
def test_what_is_no_folder_is_refused_by_name(folder: Any) -> None:
    with pytest.raises(InvalidRequest, match="is no folder for images"):
        run_batch(FakePipeline(), JOB, folder)


@pytest.mark.parametrize(
    ("one", "two"),
    [("A.png", "a.png"), ("\u00e9.png", "e\u0301.png"), ("stra\u00dfe.png", "STRASSE.png"), ("B/x.png", "b/X.png")],
)
def test_names_that_are_one_where_case_is_ignored_are_refused_everywhere(tmp_path: Path, one: str, two: str) -> None:
    job = [{"prompt": "a", "seed": 1, "file": one}, {"prompt": "b", "seed": 1, "file": two}]

    with pytest.raises(InvalidRequest, match=f"request 2: another image is to have the name {one}, which many file"):
        run_batch(FakePipeline(), job, tmp_path)


def test_one_image_may_have_names_that_differ_in_case(tmp_path: Path) -> None:
    job = [{"prompt": "a", "seed": 1, "file": name} for name in ("A.png", "a.png")]

    assert run_batch(FakePipeline(), job, tmp_path).drawn == 1
    assert run_batch(FakePipeline(), job, tmp_path).finished == 1


def test_in_archives_images_may_not_differ_in_their_endings_only(tmp_path: Path) -> None:
    job = [{"prompt": "a", "seed": 1, "file": "x.png"}, {"prompt": "b", "seed": 1, "file": "X.jpg"}]

    with pytest.raises(InvalidRequest, match=r"X.jpg: its JSON would have the name of that of x.png; give another"):
        run_batch(FakePipeline(), job, tmp_path / "tar", format="tar")

    assert not (tmp_path / "tar").exists()
    assert run_batch(FakePipeline(), job, tmp_path / "files").drawn == 2
    both_of_one = [{"prompt": "a", "seed": 1, "file": name} for name in ("x.png", "x.jpg")]
    assert run_batch(FakePipeline(), both_of_one, tmp_path / "tar", format="tar").drawn == 1


def test_images_of_an_archive_that_failed_among_others_do_not_end_the_run(tmp_path: Path) -> None:
    job = [{"prompt": f"prompt {number % 2}", "seed": number} for number in range(2 * HOPELESS + 4)]
    bad = FakePipeline(on_draw=refusing("prompt 1"))

    progress = run_batch(bad, job, tmp_path, batch_size=1, format="tar")

    assert (progress.drawn, len(progress.failures)) == (HOPELESS + 2, HOPELESS + 2)


def test_what_is_no_file_under_the_name_of_an_image_is_told_of_and_never_waited_for(tmp_path: Path) -> None:
    (tmp_path / "000000-0.png").mkdir()
    os.mkfifo(tmp_path / "000001-1.png")
    (tmp_path / "000002-2.png").symlink_to("/dev/zero")
    (tmp_path / "000003-3.png").symlink_to(tmp_path / "nowhere")

    with pytest.raises(InvalidRequest, match=r"4 problems:(\n.*00000.*is there already.*){4}"):
        run_batch(FakePipeline(), JOB, tmp_path)

    os.mkfifo(tmp_path / "ledger-2.jsonl")
    with pytest.raises(InvalidRequest, match=r"ledger-2.jsonl is a folder or no regular file; move it away"):
        run_batch(FakePipeline(), JOB, tmp_path)


def test_images_of_another_version_are_told_to_be_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_batch(FakePipeline(), JOB[:1], tmp_path)
    monkeypatch.setattr("diffsynth.batch.plan.__version__", "99.0")

    with pytest.raises(InvalidRequest, match=r"another image, drawn with diffsynth \d.* and torch \d"):
        run_batch(FakePipeline(), JOB[:1], tmp_path)

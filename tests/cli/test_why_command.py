"""``diffsynth why``, run as a user does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffsynth.cli import run


@pytest.fixture(scope="module")
def drawn(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    small = ["--height", "64", "--width", "64", "--steps", "1", "--prompt", "a cat", "--model", str(models)]
    for seed in ("1", "2"):
        assert run(["generate", *small, "--seed", seed, "-o", str(folder / f"{seed}.png")]) == 0
    return folder


def test_it_tells_what_differs_and_leaves_with_zero(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["why", str(drawn / "1.png"), str(drawn / "2.png")])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[:4] == [f"A  {drawn / '1.png'}", f"B  {drawn / '2.png'}", "the same in all but:", "  seed: 1 | 2"]
    assert lines[-1] == "explained by seed."


def test_it_speaks_json(drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["why", "--json", str(drawn / "1.png"), str(drawn / "1.png")])

    found = json.loads(capsys.readouterr().out)
    assert (found["differences"], found["same_file"], found["comparison"]["equal"]) == ([], True, True)


def test_images_of_a_folder_can_be_named_alone_and_folders_compared(
    drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["why", "1.png", "2.png", "--run", str(drawn)]) == 0
    assert "  seed: 1 | 2" in capsys.readouterr().out
    assert run(["why", str(drawn), str(drawn)]) == 0
    assert "equal: 2, 2 of them byte for byte" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["1.png", "3.png", "--run", "."], "'3.png' fits no image of .; give a name or a key."),
        ([".", "1.png"], "a folder can be compared with a folder only"),
        (["1.png", "text.txt"], "text.txt is not a picture that Pillow can read."),
        (["1.png", "gone.png"], "No such file or directory: 'gone.png'"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    arguments: list[str], message: str, drawn: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(drawn)
    (drawn / "text.txt").write_text("no picture")

    code = run(["why", *arguments])

    err = capsys.readouterr().err
    assert code == 1
    assert message in err
    assert len(err.splitlines()) == 1

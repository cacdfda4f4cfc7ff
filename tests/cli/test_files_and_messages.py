"""What the command line says of files it cannot use, and that it says so before it loads anything."""

from __future__ import annotations

import io
import json
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffsynth import ModelManager
from diffsynth.cli import run
from diffsynth.cli.options import print_anything
from diffsynth.pipelines.recipe import read_recipe

SMALL = ["--height", "64", "--width", "64", "--steps", "2", "--device", "cpu"]


@pytest.fixture
def nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was loaded")

    monkeypatch.setattr(ModelManager, "load_model", refuse)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was said on standard error, which must be one line and no traceback."""
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert len(error.splitlines()) == 1, error
    return error


def bad_pictures(folder: Path) -> Iterator[tuple[Path, str]]:
    Image.effect_noise((300, 300), 50).save(folder / "good.png")
    content = (folder / "good.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    yield folder / "cut.png", "damaged"
    (folder / "text.png").write_text("no picture")
    yield folder / "text.png", "not a picture"
    for name, side in (("large.png", 9000), ("huge.png", 50_000)):
        (folder / name).write_bytes(png_of(side))
        yield folder / name, "64,000,000"
    yield folder, "not a regular file"
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.png")
        yield folder / "pipe.png", "not a regular file"


def png_of(side: int) -> bytes:
    """Return a PNG file that announces a large picture and holds hardly any of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, words in bad_pictures(tmp_path):
        for option in (["--input-image", str(path)], ["--mask", str(path), "--local-prompt", "a"]):
            code = run(["generate", "--prompt", "a", *option])

            error = one_line(capsys)
            assert code == 1
            assert str(path) in error
            assert words in error


@pytest.mark.usefixtures("nothing_is_loaded")
def test_an_image_without_a_readable_recipe_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, _ in bad_pictures(tmp_path):
        code = run(["generate", "--like", str(path)])

        assert code == 1
        assert str(path) in one_line(capsys)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--conventions", "nobody"], "unknown conventions"),
        (["--scheduler", "euler9"], "unknown scheduler"),
        (["--spacing", "wide"], "unknown spacing"),
        (["--beta-end", "2"], "beta_end"),
        (["--height", "3"], "height must be"),
        (["--seed", "-1"], "seed must be"),
        (["--num-images", "2", "--seed", str(2**63 - 1)], "seed must be"),
        (["--denoising-strength", "0.5"], "needs an input_image"),
        (["-o", "folder.png"], "folder.png is a folder"),
        (["-o", "file/image.png"], "file is not a folder"),
        (["-o", "file/deeper/image.png"], "file is not a folder"),
        (["-o", "x" * 252 + ".png"], "x" * 252),
        (["-o", "x" * 248 + ".png", "--num-images", "2"], "x" * 248 + "-0001.png"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_are_checked_before_anything_is_loaded(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    Path("file").touch()

    code = run(["generate", "--prompt", "a", *arguments])

    assert code == 1
    assert words in one_line(capsys)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_a_folder_that_may_not_be_written_is_named_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    code = run(["generate", "--prompt", "a", "-o", str(tmp_path / "new" / "image.png")])

    assert code == 1
    assert f"no permission to write into {tmp_path}" in one_line(capsys)


def draw(models: Path, path: Path) -> None:
    assert run(["generate", "--prompt", "a", "--model", str(models), *SMALL, "-o", str(path)]) == 0


def change(path: Path, *keys: Any, value: object) -> None:
    """Write one value of an image's recipe anew."""
    recipe = read_recipe(path)
    inner: Any = recipe
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    chunks = PngInfo()
    chunks.add_itxt("diffsynth", json.dumps(recipe))
    Image.new("RGB", (4, 4)).save(path, pnginfo=chunks)


def test_like_passes_on_the_scale_of_the_latents(models: Path, tmp_path: Path) -> None:
    draw(models, tmp_path / "a.png")
    change(tmp_path / "a.png", "latent_scale", value=0.5)

    assert run(["generate", "--like", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]) == 0
    assert read_recipe(tmp_path / "b.png")["latent_scale"] == 0.5


def test_like_refuses_what_it_cannot_draw_again(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.png"
    moved = tmp_path / "moved.pt"
    for keys, value, words in (
        (("pipeline",), "OtherPipeline", "was drawn by OtherPipeline"),
        (("request", "new_setting"), 5, "does not know: new_setting"),
        (("request", "height"), "64", "height must be"),
        (("request", "local_prompts"), 5, "local_prompts must be a list"),
        (("models", 0, "files", 0, "path"), str(moved), f"not there: {moved}. Say where they are with --model"),
    ):
        draw(models, path)
        change(path, *keys, value=value)
        capsys.readouterr()

        code = run(["generate", "--like", str(path), "--device", "cpu", "-o", str(tmp_path / "b.png")])

        assert code == 1
        assert words in one_line(capsys)


def test_like_finds_the_files_from_another_folder(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(models.parent)
    draw(Path("t2i"), tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)

    assert run(["generate", "--like", "a.png", "--device", "cpu", "-o", "b.png"]) == 0


def test_inspect_tells_of_a_folder_that_cannot_be_read_beside_the_others(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listing = Path.iterdir

    def iterdir(path: Path) -> Iterator[Path]:
        if path.name == "mt5":
            raise PermissionError(13, "Permission denied", str(path))
        return iter(listing(path))

    monkeypatch.setattr(Path, "iterdir", iterdir)

    code = run(["inspect", str(models), "--json"])

    rows = {Path(row["path"]).name: row for row in json.loads(capsys.readouterr().out)["files"]}
    assert code == 1
    assert len(rows) == 4
    assert [name for name, row in rows.items() if row["error"]] == ["mt5"]
    assert "Permission denied" in rows["mt5"]["error"]


@pytest.mark.skipif(os.name != "posix", reason="needs file names that are any bytes")
def test_inspect_writes_names_that_are_not_utf_8_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / os.fsdecode(b"odd\xff.safetensors")

    code = run(["inspect", str(path), "--json"])

    out = capsys.readouterr().out
    assert code == 1
    assert out.isascii()
    assert json.loads(out)["files"][0]["path"] == str(path)


def test_what_a_terminal_cannot_show_is_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))

    print_anything()
    sys.stdout.write("獾 \udcff\n")
    sys.stdout.flush()

    assert written.getvalue() == rb"\u737e \udcff" + os.linesep.encode()

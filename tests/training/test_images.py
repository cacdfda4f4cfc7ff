"""Pictures of all kinds, and tables of all kinds, as they come from elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
from PIL import Image

from diffsynth.errors import InvalidRequest
from diffsynth.training import DataConfig, Example, ImageFolder
from diffsynth.training.dataset import open_dataset, read_image
from diffsynth.training.pictures import Pictures
from tests.training.toy import Squares, write_folder


def csv_folder(folder: Path, content: bytes) -> Path:
    write_folder(folder)
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_bytes(content)
    return folder


@pytest.mark.parametrize("name", ["gray.png", "gray.tif"])
def test_sixteen_bits_are_brought_to_eight(tmp_path: Path, name: str) -> None:
    Image.fromarray(np.full((8, 8), 40000, dtype=np.uint16)).save(tmp_path / name)

    assert read_image(tmp_path / name).getpixel((3, 3)) == (156, 156, 156)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_values_without_a_known_white_are_refused(tmp_path: Path, kind: type[np.number]) -> None:
    Image.fromarray(np.full((8, 8), 1, dtype=kind)).save(tmp_path / "x.tif")

    with pytest.raises(OSError, match="has values of 32 bits"):
        read_image(tmp_path / "x.tif")


def test_palettes_transparency_and_turned_cameras_are_understood(tmp_path: Path) -> None:
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 128]))
    turned = Image.new("RGB", (8, 16))
    exif = turned.getexif()
    exif[0x112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "print.jpg")

    found = [read_image(tmp_path / name) for name in ("palette.png", "turned.jpg", "print.jpg")]

    assert found[0].getpixel((1, 1)) == (255, 255, 255)
    assert found[1].size == (16, 8)
    assert found[2].getpixel((1, 1)) == (0, 255, 255)


def test_whatever_a_reader_raises_is_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise RuntimeError("Failed to decode frame 0")

    (tmp_path / "x.avif").touch()
    monkeypatch.setattr(Image, "open", fail)

    with pytest.raises(OSError, match="damaged: Failed to decode frame 0"):
        read_image(tmp_path / "x.avif")


def test_bad_lines_and_bad_pictures_are_said_together(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", count=2)
    (folder / "1.png").write_text("no picture")
    (folder / "folder").mkdir()
    with (folder / "metadata.jsonl").open("a") as file:
        file.write('{"text": "x"}\nnonsense\n[]\n' + json.dumps({"file_name": "folder", "text": "x"}) + "\n")
        file.write(json.dumps({"file_name": str(folder / "0.png"), "text": "x"}) + "\n")
    config = DataConfig(source=str(folder), size=32)

    with pytest.raises(InvalidRequest) as caught:
        Pictures(open_dataset(config), config, 0, captions=True)

    said = str(caught.value).splitlines()
    assert said[1] == "  metadata.jsonl, line 2, 1.png: no picture that Pillow can read"
    assert said[2] == "  metadata.jsonl, line 3: has no file_name"
    assert said[3].startswith("  metadata.jsonl, line 4: is no JSON (")
    assert said[4] == "  metadata.jsonl, line 5: is no JSON object"
    assert said[5] == "  metadata.jsonl, line 6, folder: is no file"
    assert said[6] == "  metadata.jsonl, line 7, 0.png: lies outside the folder"


def test_a_table_may_have_a_mark_at_its_start_and_blanks_after_commas(tmp_path: Path) -> None:
    folder = csv_folder(tmp_path / "data", b'\xef\xbb\xbffile_name, text\n0.png, "red, round"\n')

    assert ImageFolder(str(folder)).__getitem__(0, Random(0)).texts == ("red, round",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name;text\n0.png;red\n", "has no column file_name; it has name;text"),
        ("file_name,text\n0.png,红色\n".encode("gbk"), "is no text in UTF-8"),
        (b"file_name,text\n0.png," + b"x" * 200_000 + b"\n", "is no table: field larger"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        ImageFolder(csv_folder(tmp_path / "data", content))


def test_a_picture_may_be_a_link_to_another_place(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", count=1)
    (folder / "0.png").rename(tmp_path / "elsewhere.png")
    (folder / "0.png").symlink_to(tmp_path / "elsewhere.png")

    assert ImageFolder(folder).__getitem__(0, Random(0)).image.size == (32, 32)


def test_one_text_is_not_taken_for_many_captions() -> None:
    with pytest.raises(TypeError, match="texts are several captions"):
        Example(Image.new("RGB", (8, 8)), "a panda")  # type: ignore[arg-type]


def test_arguments_that_a_function_does_not_take_are_refused() -> None:
    config = DataConfig(source="tests.training.toy:squares", size=32, arguments={"cuont": 3})

    with pytest.raises(InvalidRequest, match="do not fit tests"):
        open_dataset(config)


def test_data_of_changing_size_keeps_the_shape_it_was_first_seen_with() -> None:
    class Changing(Squares):
        def __getitem__(self, index: int, rng: Random) -> Example:
            example = super().__getitem__(index, rng)
            return Example(example.image.resize(rng.choice([(64, 32), (32, 64)])), example.texts)

    config = DataConfig(source="x", size=32, aspect_limit=2, variants=0)
    pictures = Pictures(Changing(4), config, 0, captions=True)

    for epoch in range(4):
        for number, shape in enumerate(pictures.shapes):
            assert pictures.picture(number, epoch)[0].shape == (3, shape.height, shape.width)

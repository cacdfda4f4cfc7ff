"""Folders of pictures and Python data; what is bad is named before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from diffsynth.errors import InvalidRequest
from diffsynth.training import Example, ImageFolder
from diffsynth.training.config import DataConfig
from diffsynth.training.dataset import open_dataset
from diffsynth.training.pictures import Pictures, to_pixels
from tests.training.toy import Squares, write_folder


def data(source: Path | str, **changes: object) -> DataConfig:
    return DataConfig(**{"source": str(source), "size": 32, **changes})  # type: ignore[arg-type]


def prepared(source: Path, *, captions: bool = True, **changes: object) -> Pictures:
    config = data(source, **changes)
    return Pictures(open_dataset(config), config, 0, captions=captions)


def test_a_folder_gives_pictures_with_captions_in_all_languages(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")

    dataset = ImageFolder(folder)

    example = dataset.__getitem__(1, Random(0))
    assert len(dataset) == 4
    assert (example.image.size, example.image.mode) == ((32, 32), "RGB")
    assert example.texts == ("a blue panda on green", "绿色背景")


def test_one_language_can_be_chosen(tmp_path: Path) -> None:
    dataset = open_dataset(data(write_folder(tmp_path / "data"), languages=("text_zh",)))

    assert dataset.__getitem__(0, Random(0)).texts == ("蓝色背景",)


def test_metadata_may_be_a_table(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text('file_name,text,text_zh\n0.png,"red, round",\n1.png,,蓝色\n', "utf-8")

    dataset = ImageFolder(folder)

    assert [dataset.__getitem__(index, Random(0)).texts for index in range(2)] == [("red, round",), ("蓝色",)]


def test_everything_that_is_bad_is_said_at_once_with_file_names(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", count=3)
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:60])
    (folder / "1.png").write_text("no picture")
    Image.new("RGB", (20, 40)).save(folder / "small.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "outside.png")
    lines = [("small.png", "small"), ("gone.png", "gone"), ("2.png", " "), ("../outside.png", "outside")]
    with (folder / "metadata.jsonl").open("a") as file:
        file.writelines(json.dumps({"file_name": name, "text": text}) + "\n" for name, text in lines)

    with pytest.raises(InvalidRequest) as caught:
        prepared(folder)

    said = str(caught.value).splitlines()
    assert said[0] == "6 of 7 examples cannot be used:"
    assert said[1].startswith("  metadata.jsonl, line 1, 0.png: ")
    assert said[2] == "  metadata.jsonl, line 2, 1.png: no picture that Pillow can read"
    assert said[3] == "  metadata.jsonl, line 4, small.png: 20x40 pixels are too small for 32x32"
    assert said[4] == "  metadata.jsonl, line 5, gone.png: there is no such file"
    assert said[5] == "  metadata.jsonl, line 6, 2.png: has no caption"
    assert said[6] == "  metadata.jsonl, line 7, outside.png: lies outside the folder"


def test_an_autoencoder_needs_no_captions_and_small_pictures_may_be_enlarged(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", count=1)
    (folder / "metadata.jsonl").write_text('{"file_name": "0.png"}\n')

    pictures = prepared(folder, captions=False, size=64, enlarge=True)

    assert pictures.picture(0)[0].shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}\n", "line 1: has no file_name"),
        ('{"file_name": "0.png", "text": "x"}\nnonsense\n', "line 2: is no JSON"),
        ("[]\n", "line 1: is no JSON object"),
        ("", "the dataset has 0 examples"),
    ],
)
def test_metadata_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    folder = write_folder(tmp_path / "data", count=1)
    (folder / "metadata.jsonl").write_text(text)

    with pytest.raises(InvalidRequest, match=message):
        prepared(folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "is neither a folder nor module:function"),
        ("no.module:function", "cannot be imported"),
        ("tests.training.toy:nothing", "cannot be imported"),
        ("time:time", "returned a float, which is no dataset"),
    ],
)
def test_a_source_that_is_none_is_refused(source: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        open_dataset(data(source))


def test_a_folder_without_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"has neither of metadata.jsonl and metadata.csv"):
        open_dataset(data(tmp_path))


def test_python_data_that_is_bad_is_said_too() -> None:
    class Bad(Squares):
        def __getitem__(self, index: int, rng: Random) -> Example:
            if index == 1:
                raise ValueError("no glyph for it")
            return Example(Image.new("RGB", (32, 32)), ("text",) if index else ())

    with pytest.raises(InvalidRequest) as caught:
        Pictures(Bad(3), data("x"), 0, captions=True)

    assert "example 0: has no caption\n  example 1: no glyph for it" in str(caught.value)


def test_variants_differ_and_are_the_same_when_prepared_again() -> None:
    config = data("x", variants=2)

    kept, read = (Pictures(Squares(4), config, 0, captions=True, keep=keep) for keep in (True, False))

    assert len(kept) == 8
    assert (kept.kept, read.kept) == (True, False)
    assert not torch.equal(kept.picture(0)[0], kept.picture(4)[0])
    assert all(torch.equal(kept.picture(number)[0], read.picture(number, epoch=3)[0]) for number in range(8))


def test_without_variants_each_epoch_draws_anew() -> None:
    pictures = Pictures(Squares(2), data("x", variants=0), 0, captions=True)

    first, second, again = (pictures.picture(0, epoch)[0] for epoch in (1, 2, 1))

    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_pictures_that_need_too_much_memory_are_not_kept() -> None:
    assert Pictures(Squares(4), data("x", memory=1), 0, captions=True).kept
    assert not Pictures(Squares(4), data("x", memory=0), 0, captions=True).kept


def test_pictures_are_mirrored_as_often_as_asked() -> None:
    plain, mirrored = (
        Pictures(Squares(4), data("x", flip=flip), 0, captions=True).picture(0)[0] for flip in (0.0, 1.0)
    )

    assert torch.equal(mirrored, plain.flip(-1))


def test_the_last_examples_are_held_out_in_all_variants() -> None:
    pictures = Pictures(Squares(5), data("x", variants=2, held_out=2), 0, captions=True)

    assert sorted(pictures.trained) == [0, 1, 2, 5, 6, 7]
    assert list(pictures.measured) == [3, 4]


def test_the_digest_changes_with_a_pixel_and_with_a_caption(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data")
    digests = [prepared(folder).digest, prepared(folder).digest]
    with Image.open(folder / "0.png") as image:
        changed = image.convert("RGB")
    changed.putpixel((0, 0), (1, 2, 3))
    changed.save(folder / "0.png")
    digests.append(prepared(folder).digest)
    (folder / "metadata.jsonl").write_text((folder / "metadata.jsonl").read_text().replace("panda", "fox"))
    digests.append(prepared(folder).digest)

    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_pixels_become_numbers_from_minus_one_to_one() -> None:
    image = np.array([[[0, 51, 255]]], dtype=np.uint8)

    assert to_pixels(torch.from_numpy(image)).flatten().tolist() == pytest.approx([-1, -0.6, 1])

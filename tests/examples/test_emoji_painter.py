"""The emoji scenes, their captions, and the measure of what was drawn."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from PIL import Image

pytest.importorskip("emoji", reason="the package emoji is not installed")

from diffsynth import ModelManager
from diffsynth.core.saving import save_network
from diffsynth.models.hunyuan_dit import CONTROLNET_FAMILY
from diffsynth.models.hunyuan_dit.control import HunyuanDiTControlNet
from diffsynth.tokenizers.sentencepiece import SentencePieceTokenizer
from diffsynth.tokenizers.wordpiece import WordPieceTokenizer
from diffsynth.training import Dataset, read_config
from examples.emoji_painter import evaluate, placement
from examples.emoji_painter.card import card
from examples.emoji_painter.colors import COLORS
from examples.emoji_painter.dataset import scenes
from examples.emoji_painter.glyphs import FONT_SETTING, find_font, glyph
from examples.emoji_painter.measure import color_of, recognise, recognise_pair
from examples.emoji_painter.objects import thing, things
from examples.emoji_painter.scenes import (
    CELL,
    LANGUAGES,
    ONE,
    SIDE,
    TWO,
    arrange,
    caption,
    fill,
    is_held_out,
    random_scene,
)
from examples.emoji_painter.vocabulary import corpus, write_vocabularies

PAINTER = Path(evaluate.__file__).parent


@pytest.fixture(scope="module")
def font() -> Path:
    try:
        return find_font()
    except SystemExit as error:
        pytest.skip(str(error))


def test_there_are_many_objects_with_names_in_both_languages() -> None:
    objects = things()

    assert len(objects) >= 60
    assert len({each.en for each in objects}) == len({each.zh for each in objects}) == len(objects)
    assert all(re.fullmatch("[a-z ]+", each.en) for each in objects)
    assert all(re.fullmatch("[\u4e00-\u9fff]+", each.zh) for each in objects)
    assert {"badger", "rose", "panda"} <= {each.en for each in objects}
    assert thing("badger").counted_zh == "一只獾"
    assert (thing("owl").counted_en, thing("grapes").counted_en) == ("an owl", "some grapes")


def test_every_object_and_every_color_is_in_training_and_about_a_seventh_is_held_out() -> None:
    ones = [(each, color) for each in things() for color in COLORS]
    kept = [(each, color) for each, color in ones if not is_held_out((each,), color)]
    pairs = [is_held_out(pair, COLORS[0]) for pair in itertools.combinations(things(), 2)]

    assert {each for each, _ in kept} == set(things())
    assert {color for _, color in kept} == set(COLORS)
    assert 0.10 < 1 - len(kept) / len(ones) < 0.20
    assert 0.10 < sum(pairs) / len(pairs) < 0.20


def test_a_pair_is_held_out_in_either_order_and_on_every_color() -> None:
    for left, right in itertools.combinations(things()[:12], 2):
        answers = {is_held_out(pair, color) for pair in ((left, right), (right, left)) for color in COLORS}
        assert len(answers) == 1


def test_captions_name_the_objects_and_the_color() -> None:
    panda, rose, blue = thing("panda"), thing("rose"), COLORS[4]
    single, pair = (arrange(objects, blue, Random(0)) for objects in ((panda,), (panda, rose)))

    assert fill(ONE["zh"][0], single, "zh") == "一只熊猫，蓝色背景"
    assert fill(ONE["en"][0], single, "en") == "a panda on a blue background"
    assert fill(TWO["zh"][1], pair, "zh") == "左边一只熊猫，右边一朵玫瑰，蓝色背景"
    for language, seed in itertools.product(LANGUAGES, range(40)):
        text = caption(pair, language, Random(seed), complete=True)
        assert all(getattr(each, language) in text for each in (panda, rose, blue))


def test_captions_of_a_badger_and_a_yellow_rose_include_the_well_known_prompt() -> None:
    scene = arrange((thing("badger"), thing("yellow rose")), COLORS[0], Random(0))

    texts = {caption(scene, language, Random(seed)) for language in LANGUAGES for seed in range(500)}

    assert {"一只獾轻轻嗅着一朵黄色玫瑰", "a badger gently sniffing a yellow rose"} <= texts


@pytest.mark.usefixtures("font")
def test_the_dataset_depends_on_index_and_random_numbers_only() -> None:
    data = scenes(30, wordings=2)

    first, again = (data.__getitem__(7, Random(3)) for _ in range(2))
    moved = data.__getitem__(7, Random(4))

    assert isinstance(data, Dataset)
    assert first.image.tobytes() == again.image.tobytes() != moved.image.tobytes()
    assert first.texts == again.texts
    assert len(first.texts) == 4
    assert (first.image.size, first.image.mode) == ((SIDE, SIDE), "RGB")
    assert data.scene(7, Random(3)).things == data.scene(7, Random(4)).things
    assert len({data.scene(index, Random(0)).things for index in range(30)}) > 25
    with pytest.raises(IndexError):
        data.__getitem__(30, Random(0))


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("objects", [1, 2])
def test_the_dataset_keeps_to_its_share(objects: int, held_out: bool) -> None:
    data = scenes(40, objects=objects, held_out=held_out)

    found = [data.scene(index, Random(index)) for index in range(len(data))]

    assert all(len(scene.things) == objects for scene in found)
    assert all(is_held_out(scene.things, scene.color) == held_out for scene in found)


@pytest.mark.usefixtures("font")
def test_objects_lie_inside_the_picture_and_pairs_inside_their_halves() -> None:
    rng = Random(0)
    for _ in range(200):
        scene = random_scene(rng)
        for index, each in enumerate(scene.placed):
            half = SIDE // len(scene.placed)
            assert index * half <= each.x - each.size / 2 < each.x + each.size / 2 <= (index + 1) * half
            assert 0 <= each.y - each.size / 2 < each.y + each.size / 2 <= SIDE


@pytest.mark.usefixtures("font")
def test_the_yellow_rose_is_a_yellow_one_with_a_green_stem() -> None:
    red, yellow = (glyph(thing(name)).resize((1, 1), Image.Resampling.BOX) for name in ("rose", "yellow rose"))

    assert glyph(thing("rose")).size == glyph(thing("yellow rose")).size
    red_pixel, yellow_pixel = red.getpixel((0, 0)), yellow.getpixel((0, 0))
    assert isinstance(red_pixel, tuple)
    assert isinstance(yellow_pixel, tuple)
    assert red_pixel[1] < 0.5 * red_pixel[0]
    assert yellow_pixel[1] > 0.7 * yellow_pixel[0] > yellow_pixel[2]


def test_a_font_that_is_not_there_is_told_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FONT_SETTING, str(tmp_path / "none.ttf"))

    with pytest.raises(SystemExit, match=r"none\.ttf.*apt-get install fonts-noto-color-emoji"):
        find_font()


def test_vocabularies_know_every_word_of_the_captions(tmp_path: Path) -> None:
    texts = corpus(400)

    words, pieces = write_vocabularies(tmp_path, texts)

    bert, t5 = WordPieceTokenizer(tmp_path), SentencePieceTokenizer(tmp_path / "spiece.model")
    assert (bert.size, t5.size) == (words, pieces)
    names = (tmp_path / "vocab.txt").read_text("utf-8").splitlines()
    assert len(set(names)) == len(names)
    assert not any(names.index("[UNK]") in bert.encode(text) for text in texts)
    assert len(bert.encode("panda")) == 1
    assert names.index("[UNK]") not in bert.encode("zyx 5q")
    assert t5.tail("一只熊猫", 0) == "一只熊猫"
    again = tmp_path / "again"
    write_vocabularies(again, texts)
    assert all((again / name).read_bytes() == (tmp_path / name).read_bytes() for name in ("vocab.txt", "spiece.model"))


@pytest.mark.usefixtures("font")
def test_the_measure_is_right_on_clear_blurred_and_noisy_scenes() -> None:
    found = evaluate.reliability(30)

    for shares in found.values():
        assert shares["object"] >= 98
        assert shares["background"] == 100
        assert shares["clean"] >= 90


@pytest.mark.usefixtures("font")
def test_the_measure_sees_what_is_wrong() -> None:
    panda, rose, red, blue = thing("panda"), thing("rose"), COLORS[0], COLORS[4]
    pair = arrange((panda, rose), blue, Random(0))
    swapped = arrange((rose, panda), blue, Random(0)).draw()

    assert not evaluate.measure(pair, "", swapped).right_objects
    assert not evaluate.measure(arrange((panda,), red, Random(0)), "", pair.draw()).right_color
    assert recognise(Image.new("RGB", (SIDE, SIDE), blue.rgb)) is None
    assert recognise_pair(Image.new("RGB", (SIDE, SIDE), blue.rgb)) == (None, None)
    assert color_of(Image.new("RGB", (SIDE, SIDE), (90, 60, 20))) is None
    mixed = Image.blend(arrange((panda,), blue, Random(0)).draw(), arrange((rose,), blue, Random(0)).draw(), 0.5)
    seen = recognise(mixed)
    assert seen is not None
    assert not seen.is_clean


@pytest.mark.usefixtures("font")
def test_evaluation_draws_with_a_model_and_its_figures_make_a_card(toy_files: list[Path], tmp_path: Path) -> None:
    painter = evaluate.Painter(evaluate.load(toy_files[0].parents[2]), steps=1)

    figures, sheet = evaluate.evaluate(painter, singles=1, pairs=2)

    assert figures["autoencoder"]["psnr"] > 0
    assert figures["two objects, held out"]["zh"]["count"] == 2
    assert sheet.width > SIDE
    made = json.loads(json.dumps(card({"steps": 1}, figures)))
    assert made["colors"]["blue"]["zh"] == "蓝色"
    assert {"char": "🦡", "en": "badger", "zh": "獾"}.items() <= made["objects"][1].items()
    assert made["figures"] == figures


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="clip_text_encoder has no weights"):
        evaluate.load(tmp_path)


@pytest.mark.parametrize("path", sorted(PAINTER.glob("*.toml")), ids=lambda path: str(path.name))
def test_the_settings_it_was_trained_with_can_be_read(path: Path) -> None:
    config = read_config(path)

    assert config.data.source == "examples.emoji_painter.dataset:scenes"
    assert config.data.size == SIDE


@pytest.mark.usefixtures("font")
def test_scenes_anywhere_have_one_object_off_the_grid_wholly_inside() -> None:
    data = scenes(20, anywhere=True)

    placed = [data.scene(index, Random(index)).placed for index in range(20)]

    assert {len(each) for each in placed} == {1}
    assert len({(each.x % CELL, each.y % CELL) for (each,) in placed}) > 10
    assert len({each.size for (each,) in placed}) > 10
    assert all(each.x - each.size / 2 >= 0 and each.x + each.size / 2 <= SIDE for (each,) in placed)
    assert not any(is_held_out((each.thing,), data.scene(i, Random(i)).color) for i, (each,) in enumerate(placed))


@pytest.mark.usefixtures("font")
def test_placement_tells_what_stands_in_its_place_from_what_does_not() -> None:
    wanted = placement.scenes(6)
    moved = [replace(scene, placed=(replace(scene.placed[0], x=64, y=64, size=32),)) for scene in wanted]

    right = placement.figures(wanted, [scene.draw() for scene in wanted])
    wrong = placement.figures(wanted, [scene.draw() for scene in moved])
    nothing = placement.figures(wanted, [Image.new("RGB", (SIDE, SIDE), scene.color.rgb) for scene in wanted])

    perfect = {"place": 100.0, "size": 100.0, "object": 100.0, "background": 100.0}
    assert right == {"count": 6, **perfect, "middle distance": 0.0}
    assert wrong["place"] in (0.0, 16.7, 33.3)
    assert (wrong["size"], wrong["background"]) == (0.0, 100.0)
    assert nothing == {**dict.fromkeys(perfect, 0.0), "count": 6, "background": 100.0, "middle distance": None}


@pytest.mark.usefixtures("font")
def test_placement_draws_with_a_control_network_and_without(toy_files: list[Path], tmp_path: Path) -> None:
    manager = ModelManager(torch.float32, device="cpu", file_path_list=toy_files)
    config = next(entry.config for entry in manager if entry.family.name == "hunyuan_dit")
    file = tmp_path / "control.safetensors"
    save_network(HunyuanDiTControlNet(config), CONTROLNET_FAMILY, config, file, "original")
    arguments = ["--model", str(toy_files[0].parents[2]), "--control", str(file), "--output", str(tmp_path)]

    placement.main([*arguments, "--scenes", "1"])

    found = json.loads((tmp_path / "placement.json").read_text("utf-8"))
    assert found["with control"] == found["without"]  # a new one changes nothing
    assert found["with control"]["count"] == 1
    assert (tmp_path / "placement.png").is_file()

"""Settings of control networks: what is taken, what is refused, who acts when, and what each is shown."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffsynth import ModelManager
from diffsynth.core.loaded import LoadedModel
from diffsynth.core.saving import save_network
from diffsynth.errors import InvalidRequest, ModelNotLoaded
from diffsynth.models import mt5
from diffsynth.models.mt5.model import MT5Encoder
from diffsynth.pipelines.canny import canny
from diffsynth.pipelines.control import Control, ControlNets
from diffsynth.pipelines.control_request import ControlRequest
from tests.naming import as_written

PICTURE = Image.linear_gradient("L").convert("RGB").resize((48, 32))
OTHER = Image.new("RGB", (48, 32), "red")


def asked(**settings: Any) -> ControlRequest:
    return ControlRequest.from_settings({"prompt": "", "height": 32, "width": 48, **settings})


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> ModelManager:
    """Return a manager that holds three networks of one kind, named after their files."""
    folder, config = tmp_path_factory.mktemp("networks"), mt5.FAMILY.tiny()
    network = mt5.FAMILY.build(config)
    names = ("canny", "depth", "pose")
    paths = [
        save_network(network, mt5.FAMILY, config, folder / f"{name}.safetensors", "transformers") for name in names
    ]
    return ModelManager(device="cpu", file_path_list=paths)


def fits(entry: LoadedModel[Any]) -> str | None:
    return None


def no_poses(entry: LoadedModel[Any]) -> str | None:
    return f"{entry.label} is for another denoiser." if entry.path.stem == "pose" else None


def names_of(nets: ControlNets[Any]) -> list[str]:
    return [entry.path.stem for entry in nets.loaded]


@pytest.mark.parametrize("name", ["controlnet_image", "controlnet_images"])
def test_one_picture_is_a_list_of_one(name: str) -> None:
    request = asked(**{name: PICTURE}, controlnet_scales=0.5, controlnet_processors="canny")

    assert request.controlnet_images == (PICTURE,)
    assert request.controlnet_scales == (0.5,)
    assert request.controlnet_processors == ("canny",)


def test_numbers_of_numpy_in_a_list_are_numbers() -> None:
    request = asked(controlnet_images=[PICTURE], controlnet_scales=np.array([0.5], dtype=np.float32))

    assert type(request.controlnet_scales[0]) is float


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"controlnet_images": ["canny.png"]}, ["each of controlnet_images must be a picture", "str"]),
        ({"controlnet_images": np.zeros((2, 8, 8, 3))}, ["controlnet_images must be a picture", "ndarray"]),
        ({"controlnet_images": torch.tensor(3)}, ["controlnet_images must be a list, not Tensor"]),
        ({"controlnet_images": None}, ["controlnet_images cannot be None"]),
        ({"controlnet_images": [Image.new("RGB", (0, 4))]}, ["each of controlnet_images has no pixels"]),
        ({"controlnet_images": [PICTURE, None]}, ["controlnet_images has an entry that is None"]),
        ({"controlnet_scales": [None]}, ["controlnet_scales has an entry that is None"]),
        ({"controlnet_scales": [-1.0]}, ["each of controlnet_scales", "from 0 to 100", "-1.0"]),
        ({"controlnet_scales": ["strong"]}, ["each of controlnet_scales", "'strong'"]),
        ({"controlnet_scales": float("nan")}, ["each of controlnet_scales", "nan"]),
        ({"controlnet_starts": [1.5]}, ["each of controlnet_starts", "from 0 to 1", "1.5"]),
        ({"controlnet_ends": [True]}, ["each of controlnet_ends", "True"]),
        ({"controlnet_processors": "cany"}, ["each of controlnet_processors is one of none, canny", "'cany'"]),
        ({"controlnet_processors": [["canny"]]}, ["one of none, canny", "['canny']"]),
        ({"controlnet_starts": 0.8, "controlnet_ends": 0.2}, ["controlnet_starts 0.8 is not before", "ends 0.2"]),
        ({"controlnet_starts": [0.0, 1.0]}, ["controlnet_starts 1.0 is not before controlnet_ends 1.0"]),
        ({"controlnet_ends": [0.5, 0.0]}, ["controlnet_starts 0.0 is not before controlnet_ends 0.0"]),
        (
            {"controlnet_images": [PICTURE] * 2, "controlnet_scales": [1, 2, 3]},
            ["controlnet_images has 2, controlnet_scales has 3", "one for all"],
        ),
        ({"controlnet_image": PICTURE}, ["controlnet_images is given twice", "(controlnet_image)"]),
    ],
    ids=as_written,
)
def test_settings_that_make_no_sense_are_refused_by_name(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(**{"controlnet_images": [PICTURE], **settings})

    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("name", [name for name in ControlRequest.per_controlnet if name != "controlnet_images"])
def test_settings_without_a_picture_are_refused(name: str) -> None:
    value = "canny" if name == "controlnet_processors" else 0.5

    with pytest.raises(InvalidRequest, match=f"{name} has no effect without controlnet_images"):
        asked(**{name: value})


def test_a_pipeline_without_these_settings_does_not_offer_the_other_name() -> None:
    from diffsynth.pipelines.request import ImageRequest

    with pytest.raises(InvalidRequest, match="no setting called 'controlnet_image'") as caught:
        ImageRequest.from_settings({"prompt": "", "controlnet_image": PICTURE})

    assert "mean controlnet_image" not in str(caught.value)


@pytest.mark.parametrize(
    ("start", "end", "steps", "inside"),
    [
        (0.0, 1.0, 4, [0, 1, 2, 3]),
        (0.0, 0.5, 4, [0, 1]),
        (0.5, 1.0, 4, [2, 3]),
        (0.25, 0.75, 4, [1, 2]),
        (0.3, 0.7, 4, []),
        (0.2, 0.8, 7, [2, 3, 4]),
        (0.0, 0.1, 5, []),
        (0.0, 0.3, 10, [0, 1, 2]),
    ],
)
def test_a_network_acts_in_the_steps_that_lie_wholly_in_its_window(
    start: float, end: float, steps: int, inside: list[int]
) -> None:
    control = Control(None, PICTURE, 1.0, start, end)  # type: ignore[type-var]

    assert [step for step in range(steps) if control.acts(step, steps)] == inside


def test_a_network_of_scale_zero_never_acts() -> None:
    assert not Control(None, PICTURE, 0.0).acts(0, 1)  # type: ignore[type-var]


def test_a_hint_has_the_size_that_is_drawn_and_lies_on_white() -> None:
    glass = Image.new("RGBA", (24, 16), (0, 0, 0, 0))

    hint = Control(None, glass).hint(32, 48)  # type: ignore[type-var]

    assert (hint.mode, hint.size, hint.getcolors()) == ("RGB", (48, 32), [(48 * 32, (255, 255, 255))])


def test_edges_are_white_on_black_and_found_in_the_size_that_is_drawn() -> None:
    disc = Image.radial_gradient("L").point(lambda value: 255 * (value > 100)).convert("RGB")

    hint = np.asarray(Control(None, disc, processor="canny").hint(64, 96))  # type: ignore[type-var]

    expected = canny(np.asarray(disc.resize((96, 64), Image.Resampling.LANCZOS)))
    assert set(np.unique(hint)) == {0, 255}
    assert all(np.array_equal(hint[..., channel] == 255, expected) for channel in range(3))


def test_all_networks_that_fit_are_taken_in_the_order_in_which_they_came(
    manager: ModelManager, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        nets = ControlNets.choose(manager, MT5Encoder, None, no_poses)

    assert names_of(nets) == ["canny", "depth"]
    assert "pose.safetensors is for another denoiser" in caplog.text


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["pose", "canny"], ["pose", "canny"]),
        ([2, 0], ["pose", "canny"]),
        ("depth", ["depth"]),
        (1, ["depth"]),
        ([], []),
    ],
)
def test_networks_are_named_by_file_or_index_in_the_order_wanted(
    manager: ModelManager, names: Any, expected: list[str]
) -> None:
    assert names_of(ControlNets.choose(manager, MT5Encoder, names, fits)) == expected


def test_naming_what_is_not_there_or_does_not_fit_is_explained(manager: ModelManager) -> None:
    with pytest.raises(ModelNotLoaded, match=r"scribble"):
        ControlNets.choose(manager, MT5Encoder, ["scribble"], fits)
    with pytest.raises(InvalidRequest, match="is for another denoiser"):
        ControlNets.choose(manager, MT5Encoder, ["pose"], no_poses)
    with pytest.raises(InvalidRequest, match=r"depth\.safetensors twice"):
        ControlNets.choose(manager, MT5Encoder, ["depth", "canny", 1], fits)


def test_a_complete_request_has_an_entry_for_each_network(manager: ModelManager) -> None:
    nets = ControlNets.choose(manager, MT5Encoder, None, fits)

    complete = nets.complete(asked(controlnet_images=PICTURE, controlnet_scales=[0.5, 1, 2], controlnet_ends=0.5))

    assert complete.controlnet_images == (PICTURE,) * 3
    assert complete.controlnet_scales == (0.5, 1, 2)
    assert complete.controlnet_starts == (0.0,) * 3
    assert complete.controlnet_ends == (0.5,) * 3
    assert complete.controlnet_processors == ("none",) * 3
    assert nets.complete(complete) == complete


def test_what_each_network_does_is_told_in_order(manager: ModelManager) -> None:
    nets = ControlNets.choose(manager, MT5Encoder, ["pose", "canny"], fits)
    request = asked(controlnet_images=[PICTURE, OTHER], controlnet_processors=["none", "canny"], controlnet_starts=0.2)

    first, second = nets.controls(nets.complete(request))

    assert first == Control(manager.fetch_model(MT5Encoder, "pose"), PICTURE, 1.0, 0.2, 1.0, "none")
    assert second == Control(manager.fetch_model(MT5Encoder, "canny"), OTHER, 1.0, 0.2, 1.0, "canny")


def test_without_pictures_nothing_is_filled_in_and_nobody_takes_part(manager: ModelManager) -> None:
    nets = ControlNets.choose(manager, MT5Encoder, ["pose"], fits)
    request = asked()

    assert nets.complete(request) == request
    assert nets.controls(request) == []
    assert [entry.path.stem for entry in nets.in_use(tuple(manager), request)] == ["canny", "depth"]
    assert nets.in_use(tuple(manager), nets.complete(asked(controlnet_image=PICTURE))) == tuple(manager)


def test_pictures_without_a_network_are_refused_with_the_reason(manager: ModelManager) -> None:
    nets = ControlNets[MT5Encoder](left_out=("pose is for another denoiser.",))

    with pytest.raises(InvalidRequest, match=r"no control network(.|\n)*load_model(.|\n)*pose is for another"):
        nets.complete(asked(controlnet_image=PICTURE))


def test_a_wrong_number_of_entries_is_refused_with_the_names_of_the_networks(manager: ModelManager) -> None:
    nets = ControlNets.choose(manager, MT5Encoder, None, fits)

    with pytest.raises(InvalidRequest) as caught:
        nets.complete(asked(controlnet_images=PICTURE, controlnet_scales=[1, 1]))

    message = str(caught.value)
    assert "controlnet_scales has 2 entries, but 3 control networks are in use" in message
    assert all(f"{name}.safetensors" in message for name in ("canny", "depth", "pose"))


def test_what_has_no_effect_and_what_is_resized_is_told_once(
    manager: ModelManager, caplog: pytest.LogCaptureFixture
) -> None:
    nets = ControlNets.choose(manager, MT5Encoder, None, fits)
    small = Image.new("RGB", (20, 10))
    request = asked(controlnet_images=[PICTURE, small, small], controlnet_scales=[0, 1, 1], controlnet_ends=[1, 1, 0.1])

    with caplog.at_level(logging.WARNING):
        nets.remark(request, nets.complete(request), 4)

    resized, zero, never = (record.getMessage() for record in caplog.records)
    assert "a control image of 10 x 20 (height x width) is resized to 32 x 48" in resized
    assert "canny.safetensors has no effect: its scale is 0" in zero
    assert "pose.safetensors has no effect: none of the 4 steps lies wholly from 0.0 to 0.1 of them" in never

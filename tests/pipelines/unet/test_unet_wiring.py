"""Which networks a pipeline takes from a manager that has loaded several, and what it says if one is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffsynth import ModelManager, SDImagePipeline, SDXLImagePipeline
from diffsynth.cli import run
from diffsynth.core.saving import save_network
from diffsynth.errors import AmbiguousModel, CorruptCheckpoint, InvalidRequest, ModelNotLoaded
from diffsynth.models import unet
from examples.random_stable_diffusion import XL, write_diffusers_folder

from .conftest import Release
from .toy import PROMPT, draw, load, write_release


def manager_of(paths: Sequence[Path], **how: Any) -> ModelManager:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu")
    for path in paths:
        manager.load_model(path, **how)
    return manager


def test_each_pipeline_takes_the_networks_of_its_release(release: Release) -> None:
    """All releases in one manager: structure tells the denoisers, neighbourhood the autoencoders."""
    manager = manager_of([release(name) for name in ("sd15", "sdxl", "sdxl-refiner")])

    sd = SDImagePipeline.from_model_manager(manager)
    sdxl = SDXLImagePipeline.from_model_manager(manager, refiner=True)
    refiner = SDXLImagePipeline.from_model_manager(manager, denoiser="sdxl-refiner")

    assert {entry.path.stem for entry in sd.models} == {"sd15"}
    assert [entry.path.stem for entry in sdxl.models] == ["sdxl"] * 4 + ["sdxl-refiner"]
    assert {entry.path.stem for entry in refiner.models} == {"sdxl-refiner"}
    assert sdxl.refiner is refiner.denoiser
    assert (sd.latent_scale, sdxl.latent_scale) == (0.18215, 0.13025)


def test_a_shared_autoencoder_is_the_same_object(release: Release) -> None:
    manager = manager_of([release("sdxl"), release("sdxl-refiner")])

    base = SDXLImagePipeline.from_model_manager(manager, denoiser="sdxl", vae="sdxl")
    refiner = SDXLImagePipeline.from_model_manager(manager, denoiser="sdxl-refiner", vae="sdxl")

    assert base.vae is refiner.vae


def test_two_denoisers_of_one_kind_must_be_named(release: Release, tmp_path: Path) -> None:
    manager = manager_of(
        [release("sd15"), write_release(tmp_path / "fine", "sd15").rename(tmp_path / "fine/tune.safetensors")]
    )

    with pytest.raises(AmbiguousModel, match=r"fits 2 loaded networks.*denoiser="):
        SDImagePipeline.from_model_manager(manager)
    named = SDImagePipeline.from_model_manager(manager, denoiser="tune")

    assert {entry.path.stem for entry in named.models} == {"tune"}


def test_every_missing_network_is_named_at_once(release: Release) -> None:
    manager = manager_of([release("sdxl")], kind="unet")

    with pytest.raises(ModelNotLoaded) as caught:
        SDXLImagePipeline.from_model_manager(manager)
    with pytest.raises(ModelNotLoaded, match="a denoiser without pooled prompts"):
        SDImagePipeline.from_model_manager(manager)

    message = str(caught.value)
    assert "clip (a text encoder with a projection) and autoencoder_kl (an autoencoder)" in message
    assert "denoiser with pooled prompts)" not in message


def test_a_base_network_needs_the_first_encoder_too(release: Release) -> None:
    manager = manager_of([release("sdxl")])
    manager.release("clip", "conditioner.embedders.0.transformer")

    with pytest.raises(ModelNotLoaded, match="a text encoder of width 64"):
        SDXLImagePipeline.from_model_manager(manager)


@pytest.mark.parametrize(
    ("without", "message"),
    [
        (
            "cond_stage_model.",
            r"clip \(a text encoder\); loaded are.* a text encoder as text_encoder/model.safetensors of a Diffusers "
            r"folder, and in whole files such as v1-5-pruned-emaonly.safetensors \(StableDiffusion_v15",
        ),
        ("first_stage_model.", r"autoencoder_kl \(an autoencoder\).* as vae/diffusion_pytorch_model.safetensors"),
        ("model.diffusion_model.", r"unet \(a denoiser without pooled.* as unet/diffusion_pytorch_model.safetensors"),
    ],
)
def test_what_a_single_file_lacks_is_named_with_the_files_that_have_it(
    release: Release, tmp_path: Path, without: str, message: str
) -> None:
    state = {key: value for key, value in load_file(release("sd15")).items() if not key.startswith(without)}
    save_file(state, tmp_path / "pruned.safetensors")

    with pytest.raises(ModelNotLoaded, match=message):
        SDImagePipeline.from_model_manager(manager_of([tmp_path / "pruned.safetensors"]))


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (
            "conditioner.embedders.0.transformer",
            r"a text encoder of width 64.*text_encoder/model.safetensors.*sd_xl_base",
        ),
        ("conditioner.embedders.1.model", r"clip \(a text encoder with a projection\).*text_encoder_2/model"),
    ],
)
def test_what_sdxl_lacks_is_named_with_the_files_that_have_it(release: Release, prefix: str, message: str) -> None:
    manager = manager_of([release("sdxl")])
    manager.release("clip", prefix)

    with pytest.raises(ModelNotLoaded, match=message):
        SDXLImagePipeline.from_model_manager(manager)


def test_a_refiner_that_is_not_loaded_is_named(release: Release) -> None:
    with pytest.raises(ModelNotLoaded, match=r"a refiner that fits.*sd_xl_refiner_1.0.safetensors"):
        SDXLImagePipeline.from_model_manager(manager_of([release("sdxl")]), refiner=True)


@pytest.fixture(scope="module")
def kolors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small denoiser of the shape of Kolors'."""
    config = replace(XL, text_size=72)
    path = tmp_path_factory.mktemp("kolors") / "kolors.safetensors"
    return save_network(unet.FAMILY.build(config), unet.FAMILY, config, path, "diffusers")


@pytest.mark.parametrize("kind", [SDImagePipeline, SDXLImagePipeline])
def test_a_denoiser_of_kolors_is_refused_in_one_sentence(release: Release, kolors: Path, kind: type[Any]) -> None:
    alone, beside = manager_of([kolors]), manager_of([release("sdxl"), kolors])

    for manager, name in ((alone, None), (beside, "kolors"), (beside, 1), (alone, -1)):
        with pytest.raises(
            InvalidRequest, match=r"unet from .*kolors.safetensors: a denoiser of Kolors reads .*ChatGLM"
        ):
            kind.from_model_manager(manager, denoiser=name)


def test_a_denoiser_of_kolors_is_in_the_way_of_nothing(release: Release, kolors: Path) -> None:
    pipe = SDXLImagePipeline.from_model_manager(manager_of([kolors, release("sdxl")]))

    assert {entry.path.stem for entry in pipe.models} == {"sdxl"}


def test_inspect_names_kolors(kolors: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(kolors)]) == 0

    out = capsys.readouterr().out
    assert "A denoiser of Kolors reads the features of a ChatGLM text encoder" in out
    assert "still needs" not in out


def test_a_named_network_that_does_not_fit_is_refused(release: Release) -> None:
    manager = manager_of([release("sd15"), release("sdxl")])

    with pytest.raises(InvalidRequest, match=r"sdxl.safetensors.* is not a denoiser of Stable Diffusion 1.5"):
        SDImagePipeline.from_model_manager(manager, denoiser="sdxl")


@pytest.mark.parametrize(("name", "kind"), [("sd15", SDImagePipeline), ("sdxl", SDXLImagePipeline)])
def test_a_folder_of_diffusers_draws_as_the_single_file(tmp_path: Path, name: str, kind: type[Any]) -> None:
    from examples.random_stable_diffusion import write_single_file

    file = write_single_file(tmp_path / "file", name)
    folder = write_diffusers_folder(tmp_path / "folder", name)

    _, expected = draw(load([file], kind), PROMPT, num_inference_steps=2)
    _, found = draw(load([folder], kind), PROMPT, num_inference_steps=2)

    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("beside", [{}, {"v_pred": torch.tensor([])}], ids=["plain", "marked"])
def test_the_mark_of_velocity_prediction_is_heeded(tmp_path: Path, beside: dict[str, torch.Tensor]) -> None:
    path = write_release(tmp_path, "sdxl", **beside)

    assert load([path], SDXLImagePipeline).prediction == ("velocity" if beside else "epsilon")
    assert load([path], SDXLImagePipeline, prediction="velocity").prediction == "velocity"


def test_the_mark_of_a_schedule_that_ends_in_pure_noise_is_heeded(
    tmp_path: Path, release: Release, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_release(tmp_path, "sdxl", v_pred=torch.tensor([]), ztsnr=torch.tensor([]))

    marked, plain = load([path], SDXLImagePipeline), load([release("sdxl")], SDXLImagePipeline)
    complete = [pipe.complete(pipe.request_type(prompt=PROMPT)) for pipe in (marked, plain)]

    assert (marked.zero_terminal_snr, plain.zero_terminal_snr) == (True, False)
    assert [request.spacing for request in complete] == ["trailing", None]
    assert marked.describe()["zero_terminal_snr"] is True
    assert not load([path], SDXLImagePipeline, zero_terminal_snr=False).zero_terminal_snr
    assert caplog.text == ""


def test_a_folder_of_diffusers_has_the_marks_in_its_scheduler(tmp_path: Path) -> None:
    folder = write_diffusers_folder(tmp_path / "release", "sdxl")
    path = folder / "scheduler" / "scheduler_config.json"
    path.parent.mkdir()

    path.write_text('{"prediction_type": "v_prediction", "rescale_betas_zero_snr": true}', "utf-8")
    marked = load([folder], SDXLImagePipeline)
    path.write_text('{"prediction_type": "epsilon", "rescale_betas_zero_snr": false}', "utf-8")
    plain = load([folder], SDXLImagePipeline)
    path.write_text("{", "utf-8")

    assert (marked.prediction, marked.zero_terminal_snr) == ("velocity", True)
    assert (plain.prediction, plain.zero_terminal_snr) == ("epsilon", False)
    with pytest.raises(CorruptCheckpoint, match=r"scheduler_config\.json.* is not JSON"):
        load([folder], SDXLImagePipeline)


def test_that_mark_on_a_network_that_predicts_the_noise_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_release(tmp_path, "sdxl", ztsnr=torch.tensor([]))

    assert not load([path], SDXLImagePipeline).zero_terminal_snr
    assert f"{path}" in caplog.text
    assert "is marked as trained on a schedule that ends in pure noise, but predicts epsilon" in caplog.text
    assert load([path], SDXLImagePipeline, prediction="velocity").zero_terminal_snr
    with pytest.raises(InvalidRequest, match=r"needs a network that predicts .velocity..* say prediction=.velocity."):
        load([path], SDXLImagePipeline, zero_terminal_snr=True)


def test_an_unknown_prediction_is_refused_when_the_pipeline_is_made(release: Release) -> None:
    with pytest.raises(InvalidRequest, match="unknown prediction 'noise'"):
        load([release("sd15")], SDImagePipeline, prediction="noise")


def test_a_refiner_that_predicts_something_else_is_refused_unless_it_is_said(release: Release, tmp_path: Path) -> None:
    paths = [write_release(tmp_path, "sdxl", v_pred=torch.tensor([])), release("sdxl-refiner")]
    names: dict[str, Any] = {"clip_2": "sdxl", "vae": "sdxl", "refiner": True}

    with pytest.raises(
        InvalidRequest, match=r"sdxl\.safetensors.* is marked as predicting the velocity, .*refiner.* is not"
    ):
        load(paths, SDXLImagePipeline, **names)
    assert load(paths, SDXLImagePipeline, **names, prediction="velocity").refiner is not None
    assert load(paths, SDXLImagePipeline, clip_2="sdxl", vae="sdxl").prediction == "velocity"


def test_an_encoder_that_a_refiner_does_not_read_is_refused(release: Release) -> None:
    with pytest.raises(InvalidRequest, match="is a refiner, which reads the second text encoder only"):
        load([release("sdxl-refiner")], SDXLImagePipeline, clip="sdxl-refiner")


@pytest.mark.parametrize("layout", ["ldm", "diffusers", "diffsynth"])
def test_the_marks_of_a_network_are_saved_with_it(tmp_path: Path, layout: str) -> None:
    path = write_release(tmp_path, "sdxl", v_pred=torch.tensor([]), ztsnr=torch.tensor([]))
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=[path])

    saved = manager.save("unet", tmp_path / "saved.safetensors", layout=layout)

    entry = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=[saved]).find("unet")
    assert entry.found.marks == {"v_pred", "ztsnr"}
    assert entry.found.layout.name == layout


def test_sizes_of_tiles_without_tiles_are_told_of(release: Release, caplog: pytest.LogCaptureFixture) -> None:
    draw(load([release("sd15")], SDImagePipeline), PROMPT, tile_size=32, num_inference_steps=1)

    assert "tile_size and tile_stride have no effect" in caplog.text


def test_diffsynth_conventions_round_sizes_up_and_run_twenty_steps(release: Release) -> None:
    pipe = load([release("sd15")], SDImagePipeline, "diffsynth")

    image, _ = draw(pipe, PROMPT, height=65, num_inference_steps=1)
    complete = pipe.complete(pipe.request_type(prompt=PROMPT))

    assert image.size == (128, 128)
    assert (complete.num_inference_steps, complete.cfg_scale, complete.height) == (20, 7.5, 512)

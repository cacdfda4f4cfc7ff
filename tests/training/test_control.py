"""Training a control network: where it starts, what it is shown, what learns, and that pipelines draw with it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffsynth import HunyuanDiTImagePipeline, ModelManager
from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.core.saving import to_layout
from diffsynth.errors import InvalidRequest
from diffsynth.models.hunyuan_dit import CONTROLNET_FAMILY, FAMILY
from diffsynth.models.hunyuan_dit.rope import build_rope
from diffsynth.schedulers.betas import noise_schedule
from diffsynth.training import ControlConfig, LoRAConfig, OptimizerConfig, TrainingConfig, train
from diffsynth.training.buckets import Frame
from diffsynth.training.control import ControlNetwork, edges
from diffsynth.training.denoiser import DenoiserTraining
from diffsynth.training.devices import Workers
from diffsynth.training.loop import Loop
from diffsynth.training.pictures import Pictures
from diffsynth.training.randomness import generator_for
from diffsynth.training.record import Record
from diffsynth.training.run import denoiser_training
from diffsynth.training.state import STATE
from tests import diffusers_networks
from tests.training.toy import (
    Squares,
    autoencoder_config,
    differing,
    lora_config,
    networks_of,
    tensors,
    unet_config,
)

CPU = torch.device("cpu")
FILE = "controlnet/pytorch_model_canny.safetensors"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def control_config(run: Path, files: Path, **changes: Any) -> TrainingConfig:
    """Settings of a control network's run over the base that a LoRA's run has."""
    config = lora_config(run, files, **{"optimizer": OptimizerConfig(learning_rate=1e-2, ema=0.9), **changes})
    return replace(config, lora=None, control=ControlConfig())


def make_job(config: TrainingConfig, cache: Path | None = None) -> DenoiserTraining:
    return denoiser_training(config, Pictures(Squares(), config.data, config.seed, captions=True), CPU, cache)


def network_of(job: DenoiserTraining) -> Any:
    assert isinstance(job.student, ControlNetwork)
    return job.student.network


def test_edges_are_white_on_black_and_those_of_the_pipeline() -> None:
    image = Squares().__getitem__(3, Random(0)).image
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)

    (found,) = edges(pixels[None])

    assert found.shape == (3, 32, 32)
    assert found.dtype == torch.uint8
    assert set(found.unique().tolist()) == {0, 255}
    assert 30 < int((found[0] > 0).sum()) < 130  # the outline of a square of 16 pixels
    assert torch.equal(found[0], found[2])


def test_a_new_network_is_the_denoisers_first_blocks_and_changes_nothing(tmp_path: Path, files: Path) -> None:
    job = make_job(control_config(tmp_path, files))
    denoiser = networks_of(job).denoiser
    own, base = network_of(job).state_dict(), denoiser.state_dict()
    latents, timestep = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3.0, 700])
    texts, frames = ["a panda", ""], [Frame(32, 32)] * 2

    with torch.no_grad():
        with_control = job.student.told(texts, frames, (16, 16), torch.randn(2, 4, 16, 16))(latents, timestep)
        without = job.ensemble.told(texts, frames, (16, 16))(latents, timestep)

    assert torch.equal(with_control, without)
    added = {name for name in own if name not in base}
    assert added == {f"{layer}.{part}" for layer in ("hint_proj", "outputs.0") for part in ("weight", "bias")}
    assert not any(own[name].any() for name in added)
    assert all(torch.equal(own[name], base[name]) for name in own if name not in added)


def test_only_the_control_network_learns(tmp_path: Path, files: Path) -> None:
    config = control_config(tmp_path, files)
    job = make_job(config)
    before = copy.deepcopy({name: module.state_dict() for name, module in job.ensemble.modules.items()})
    first = copy.deepcopy(network_of(job).state_dict())

    Loop(job, config, tmp_path, Workers(CPU), lambda step: {}).run(2, Record(tmp_path))

    assert set(job.networks) == {"control"}
    for name, module in job.ensemble.modules.items():
        assert all(torch.equal(weight, before[name][key]) for key, weight in module.state_dict().items())
    changed = {name for name, weight in network_of(job).state_dict().items() if not torch.equal(weight, first[name])}
    assert {"hint_proj.weight", "outputs.0.weight", "blocks.0.self_attn.qkv.weight"} <= changed


def test_what_is_drawn_with_the_result_is_what_the_training_networks_say(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = control_config(tmp_path / "run", files, steps=3)
    assert config.denoiser is not None
    final = train(config)
    job = make_job(config)
    loop = Loop(job, config, tmp_path / "run", Workers(CPU), lambda step: {})
    loop.resume()
    image = Squares().__getitem__(5, Random(1)).image
    given = config.denoiser
    base = [str(path) for path in (given.network, given.clip, given.t5, given.autoencoder)]
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=[*base, final / FILE])
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    calls: list[tuple[Tensor, float, Tensor]] = []
    plain = pipe.denoiser.denoise

    def denoise(latents: Tensor, step: int, plan: Any, **more: Any) -> Tensor:
        said = plain(latents, step, plan, **more)
        calls.append((latents, plan.timesteps[step], said))
        return said

    monkeypatch.setattr(pipe.denoiser, "denoise", denoise)
    pipe("a panda", seed=0, height=32, width=32, num_inference_steps=2, cfg_scale=1.0, output_type="latent",
         controlnet_images=image, controlnet_processors="canny")  # fmt: skip

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    hints = job._latents(edges(pixels[None]))
    with loop.averaged(), torch.no_grad():
        predict = job.student.told(["a panda"], [Frame(32, 32)], (16, 16), hints)
        bare = job.ensemble.told(["a panda"], [Frame(32, 32)], (16, 16))
        for latents, timestep, said in calls:
            time = torch.tensor([timestep])
            assert (said - predict(latents, time)).abs().max() < 1e-5
            assert (said - bare(latents, time)).abs().max() > 1e-3
    assert len(calls) == 2


def test_the_file_is_in_the_published_layout_with_the_recipe(tmp_path: Path, files: Path) -> None:
    final = train(control_config(tmp_path, files, steps=1))

    written = open_checkpoint(final / FILE)
    recipe = json.loads(written.metadata["training"])
    assert {"before_proj.weight", "after_proj_list.0.weight", "blocks.0.attn1.Wqkv.weight"} <= written.header.keys()
    assert not [key for key in written.header if key.startswith(("after_proj_list.1", "blocks.1", "final_layer"))]
    assert recipe["config"]["control"] == {"network": "", "hint": "canny"}
    assert recipe["base"]["file"] == "pytorch_model_ema.safetensors"
    assert [path.name for path in final.iterdir()] == ["controlnet"]


def test_one_step_is_the_step_written_plainly_with_diffusers(tmp_path: Path, files: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=1e-3, eps=1e-3, weight_decay=0.1, clip=0.5, ema=0.9)
    config = control_config(tmp_path, files, optimizer=optimizer, job={"dropout": 0.0})
    job = make_job(config)
    lively(network_of(job))
    ensemble = networks_of(job)
    config_ = ensemble.denoiser.config
    dit, control = diffusers_networks.hunyuan_dit(config_), diffusers_networks.hunyuan_dit_controlnet(config_)
    dit.load_state_dict(to_layout(ensemble.denoiser, FAMILY.layout("diffusers"), config_))
    layout = CONTROLNET_FAMILY.layout("diffusers")
    control.load_state_dict(to_layout(network_of(job), layout, config_))
    dit.requires_grad_(False)
    batch = next(job.batches(range(1)))

    Loop(job, config, tmp_path, Workers(CPU), lambda step: {}).run(1, Record(tmp_path))

    generator = generator_for(0, "step", 0, 0)
    places, _ = (torch.rand(4, generator=generator) for _ in range(2))
    times = (torch.rand(4, generator=generator) * 1000).long()
    clean, shown = batch.pixels * 0.13025, hints_of(job, batch.numbers) * 0.13025
    noise = torch.randn(clean.shape, generator=generator)
    texts = [captions[int(place * 2)] for captions, place in zip(batch.texts, places, strict=True)]
    bars = torch.tensor([noise_schedule(0.00085, 0.018).alpha_bars[time] for time in times])
    alpha, sigma = bars.sqrt()[:, None, None, None], (1 - bars).sqrt()[:, None, None, None]
    features = ensemble.text(texts, CPU)
    rope = build_rope(8, 8, config_.head_dim)
    told = {
        "encoder_hidden_states": features.clip,
        "text_embedding_mask": features.clip_mask,
        "encoder_hidden_states_t5": features.t5,
        "text_embedding_mask_t5": features.t5_mask,
        "image_rotary_emb": (rope.cos, rope.sin),
        "return_dict": False,
    }
    noisy = alpha * clean + sigma * noise
    (controls,) = control(noisy, times.float(), controlnet_cond=shown, conditioning_scale=1.0, **told)
    (said,) = dit(noisy, times.float(), controlnet_block_samples=list(controls), **told)
    ((said[:, :4] - (alpha * noise - sigma * clean)) ** 2).mean().backward()
    weights = [weight for weight in control.parameters() if weight.grad is not None]
    torch.nn.utils.clip_grad_norm_(weights, 0.5)
    tables = {id(each.weight) for each in control.modules() if isinstance(each, torch.nn.Embedding)}
    decays = [weight for weight in weights if weight.ndim > 1 and id(weight) not in tables]
    others = [weight for weight in weights if weight.ndim <= 1 or id(weight) in tables]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=1e-3 / 2, betas=(0.9, 0.99), eps=1e-3).step()

    ours = to_layout(network_of(job), layout, config_)
    for name, weight in control.state_dict().items():
        assert (ours[name] - weight).abs().max() < 1e-6, name


def lively(network: Any) -> None:
    """Give the layers that begin at zero values, so that all of a network has a gradient."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in (network.hint_proj, *network.outputs):
            for weight in layer.parameters():
                weight.copy_(0.1 * torch.randn(weight.shape, generator=generator))


@torch.no_grad()
def hints_of(job: DenoiserTraining, numbers: tuple[int, ...]) -> Tensor:
    """Return unscaled latents of the edges of pictures, each encoded alone."""
    vae, rows = job.ensemble.vae, []
    for number in numbers:
        pixels = edges(job.pictures.picture(number).pixels[None])
        rows.append(vae.encode(pixels.float() * 2 / 255 - 1).mean)
    return torch.cat(rows)


def test_hints_that_are_kept_give_the_loss_of_those_that_are_not(tmp_path: Path, files: Path) -> None:
    losses = []
    for cache in (True, True, False):
        job = make_job(control_config(tmp_path, files, job={"cache": cache}), tmp_path / "cache")
        lively(network_of(job))
        losses.append(job.loss(next(job.batches(range(1))), generator_for(0, "x"))["loss"].item())

    assert losses == [pytest.approx(losses[0], rel=1e-5)] * 3
    plain = make_job(replace(control_config(tmp_path, files), control=None, lora=LoRAConfig()), tmp_path / "cache")
    assert next(plain.batches(range(1))).hints is None


def test_so_many_steps_now_and_the_rest_later_is_the_same(tmp_path: Path, files: Path) -> None:
    train(control_config(tmp_path / "whole", files, steps=4))
    for steps in (1, None):
        train(control_config(tmp_path / "parts", files, steps=4), steps=steps)

    state = Path("checkpoints") / "step-000004" / STATE
    assert differing(tmp_path / "parts" / state, tmp_path / "whole" / state) == []


def test_it_goes_on_from_a_file(tmp_path: Path, files: Path) -> None:
    final = train(control_config(tmp_path / "first", files, steps=2))
    config = replace(control_config(tmp_path, files), control=ControlConfig(network=str(final / FILE)))

    job = make_job(config)

    theirs = to_layout(network_of(job), CONTROLNET_FAMILY.layout("original"), networks_of(job).denoiser.config)
    assert all(torch.equal(weight, theirs[name]) for name, weight in tensors(final / FILE).items())


def test_recomputed_activations_give_the_same_gradients(tmp_path: Path, files: Path) -> None:
    jobs = [make_job(control_config(tmp_path, files, checkpoint_activations=chosen)) for chosen in (False, True)]

    for job in jobs:
        lively(network_of(job))
        torch.autograd.backward(job.loss(next(job.batches(range(1))), generator_for(0, "x"))["loss"])

    for one, other in zip(*(network_of(job).parameters() for job in jobs), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


def test_settings_that_contradict_are_named(tmp_path: Path, files: Path) -> None:
    config = control_config(tmp_path, files)

    with pytest.raises(InvalidRequest, match="give either \\[lora\\] or \\[control\\]"):
        replace(config, lora=LoRAConfig())
    with pytest.raises(InvalidRequest, match="control: is trained for HunyuanDiT only"):
        replace(unet_config(tmp_path, files / "any"), lora=None, control=ControlConfig())
    with pytest.raises(InvalidRequest, match="control: needs a denoiser"):
        autoencoder_config(tmp_path, control=ControlConfig())


def test_samples_are_guided_by_the_measured_pictures(tmp_path: Path, files: Path) -> None:
    config = control_config(tmp_path, files)
    job = make_job(replace(config, data=replace(config.data, held_out=3)))
    plain = job.samples(3, 0).sheet

    lively(network_of(job))
    guided = job.samples(3, 0).sheet

    assert isinstance(guided, Image.Image)
    assert guided.size == plain.size
    assert guided.tobytes() != plain.tobytes()

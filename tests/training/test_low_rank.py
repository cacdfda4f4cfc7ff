"""Training a LoRA: what learns, what is written, and that others read and compute it the same."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diffsynth import HunyuanDiTImagePipeline, ModelManager, SDImagePipeline, SDXLImagePipeline
from diffsynth.core.checkpoint import open_checkpoint
from diffsynth.core.saving import to_layout
from diffsynth.errors import InvalidRequest
from diffsynth.models.hunyuan_dit import FAMILY
from diffsynth.schedulers.betas import noise_schedule
from diffsynth.training import DataConfig, LoRAConfig, OptimizerConfig, TrainingConfig, train
from diffsynth.training.buckets import Frame
from diffsynth.training.denoiser import DenoiserTraining
from diffsynth.training.devices import Workers
from diffsynth.training.loop import Loop
from diffsynth.training.low_rank import LowRank
from diffsynth.training.pictures import Pictures
from diffsynth.training.randomness import generator_for
from diffsynth.training.record import Record
from diffsynth.training.run import denoiser_training
from diffsynth.training.unet import UNetEnsemble
from tests.pipelines.unet.diffusers_parts import make_encoder, make_unet
from tests.pipelines.unet.toy import write_release
from tests.training.toy import Squares, autoencoder_config, denoiser_config, lora_config, tensors, unet_config

PROMPT = "a red panda on blue"
CPU = torch.device("cpu")
KINDS = ("hunyuan_dit", "sd15", "sdxl")
PIPELINES: dict[str, Any] = {"hunyuan_dit": HunyuanDiTImagePipeline, "sd15": SDImagePipeline, "sdxl": SDXLImagePipeline}
Configure = Callable[..., TrainingConfig]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def configure(files: Path) -> Configure:
    """Return settings of a LoRA's run by the kind of its base."""

    def settings(kind: str, run: Path, **changes: Any) -> TrainingConfig:
        if kind == "hunyuan_dit":
            return lora_config(run, files, **changes)
        file = files / f"{kind}.safetensors"
        return unet_config(run, file if file.is_file() else write_release(files, kind), **changes)

    return settings


def make_job(config: TrainingConfig) -> DenoiserTraining:
    return denoiser_training(config, Pictures(Squares(), config.data, config.seed, captions=True), CPU)


def trained_job(config: TrainingConfig, run: Path) -> DenoiserTraining:
    """Return the job as it is after a run, with the average that is drawn with."""
    job = make_job(config)
    loop = Loop(job, config, run, Workers(CPU), lambda step: {})
    loop.resume()
    assert loop.learning.average is not None
    loop.learning.average.swap()
    return job


def base_files(config: TrainingConfig) -> list[str]:
    if config.unet is not None:
        return list(config.unet.files)
    assert config.denoiser is not None
    given = config.denoiser
    return [str(each) for each in (given.network, given.clip, given.t5, given.autoencoder)]


def load(kind: str, config: TrainingConfig) -> tuple[ModelManager, Any]:
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=base_files(config))
    return manager, PIPELINES[kind].from_model_manager(manager)


@torch.no_grad()
def said_by(job: DenoiserTraining, latents: Tensor, timestep: float) -> Tensor:
    """Return what the training network says of latents (1, 4, h, w)."""
    height, width = latents.shape[-2:]
    scale = job.ensemble.vae.config.downscale
    predict = job.ensemble.told([PROMPT], [Frame(height * scale, width * scale)], (height, width))
    return predict(latents, torch.tensor([timestep]))


def drawn_by(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, float, Tensor]]:
    """Draw, and return what the denoiser was asked and what it said: latents, timestep, prediction."""
    calls: list[tuple[Tensor, float, Tensor]] = []
    plain = pipe.denoiser.denoise

    def denoise(latents: Tensor, step: int, plan: Any, **more: Any) -> Tensor:
        said: Tensor = plain(latents, step, plan, **more)
        calls.append((latents, plan.timesteps[step], said))
        return said

    with monkeypatch.context() as patch:
        patch.setattr(pipe.denoiser, "denoise", denoise)
        pipe(PROMPT, seed=0, height=64, width=64, num_inference_steps=2, cfg_scale=1.0, output_type="latent")
    return calls


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_drawn_with_the_result_is_what_the_training_network_says(
    kind: str, tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(kind, tmp_path / "run", steps=3)
    final = train(config)
    job, untrained = trained_job(config, tmp_path / "run"), make_job(config)

    manager, pipe = load(kind, config)
    lora = manager.load_lora(final)
    attached = drawn_by(pipe, monkeypatch)
    lora.merge()
    merged = drawn_by(pipe, monkeypatch)

    assert len(attached) == len(merged) == 2
    for latents, timestep, said in attached:
        assert (said - said_by(job, latents, timestep)).abs().max() < 1e-5
        assert (said - said_by(untrained, latents, timestep)).abs().max() > 1e-3
    for latents, timestep, said in merged:
        assert (said - said_by(job, latents, timestep)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_matrices_learn(kind: str, tmp_path: Path, configure: Configure) -> None:
    config = configure(kind, tmp_path, steps=2)
    job = make_job(config)
    before = copy.deepcopy({name: module.state_dict() for name, module in job.ensemble.modules.items()})
    first = {name: weight.clone() for name, weight in job.networks["lora"].named_parameters()}

    Loop(job, config, tmp_path, Workers(CPU), lambda step: {}).run(2, Record(tmp_path))

    assert set(job.networks) == {"lora"}
    assert all(
        torch.equal(weight, before[name][key])
        for name, module in job.ensemble.modules.items()
        for key, weight in module.state_dict().items()
    )
    assert not any(torch.equal(weight, first[name]) for name, weight in job.networks["lora"].named_parameters())


def test_layers_and_names_are_those_of_the_published_files(tmp_path: Path, configure: Configure) -> None:
    config = configure("hunyuan_dit", tmp_path / "run", steps=1)

    final = train(replace(config, record=replace(config.record, dtype="float16")))

    written = tensors(final / "adapter_model.safetensors")
    table = json.loads((final / "adapter_config.json").read_text())
    block = [f"blocks.0.{name}" for name in ("attn1.Wqkv", "attn1.out_proj", "attn2.q_proj", "attn2.kv_proj",
                                             "attn2.out_proj")]  # fmt: skip
    names = [name.replace(".0.", f".{number}.", 1) for number in range(4) for name in block] + ["pooler.q_proj"]
    assert set(written) == {f"base_model.model.{name}.lora_{way}.weight" for name in names for way in "AB"}
    assert written["base_model.model.blocks.0.attn1.Wqkv.lora_A.weight"].shape == (3, 48)
    assert written["base_model.model.blocks.0.attn1.Wqkv.lora_B.weight"].shape == (144, 3)
    assert {tensor.dtype for tensor in written.values()} == {torch.float16}
    assert (table["r"], table["lora_alpha"], table["target_modules"]) == (3, 6, sorted(names))
    recipe = json.loads(open_checkpoint(final / "adapter_model.safetensors").metadata["training"])
    assert recipe["config"]["lora"] == {"rank": 3, "alpha": 6.0, "layers": []}
    assert recipe["base"]["file"] == "pytorch_model_ema.safetensors"
    assert len(recipe["base"]["sha256"]) == 64
    assert {path.suffix for path in final.iterdir()} == {".json", ".safetensors"}


def test_peft_computes_the_same_with_it_on_layers_of_the_published_names(tmp_path: Path, configure: Configure) -> None:
    from peft import PeftModel

    config = configure("hunyuan_dit", tmp_path / "run", steps=2)
    final = train(config)
    job = trained_job(config, tmp_path / "run")
    denoiser: Any = job.ensemble.denoiser
    theirs = PeftModel.from_pretrained(linear_layers(to_layout(denoiser, FAMILY.layout("original"), denoiser.config)),
                                       str(final))  # fmt: skip

    assert isinstance(job.student, LowRank)
    for name, ours in job.student.layers.items():
        layer: Any = denoiser.get_submodule(ours)
        inputs = torch.randn((2, layer.in_features), generator=torch.Generator().manual_seed(0))
        found = theirs.base_model.model.get_submodule(name)(inputs)
        assert (layer(inputs) - found).abs().max() < 1e-5
        assert (nn.functional.linear(inputs, layer.weight, layer.bias) - found).abs().max() > 1e-4


def linear_layers(state: dict[str, Tensor]) -> nn.Module:
    """Return linear layers with weights under their names in a file."""
    root = nn.Module()
    for key, weight in state.items():
        path, _, last = key.removesuffix(".weight").rpartition(".")
        if weight.ndim == 2 and key.endswith(".weight") and path:
            place = root
            for part in path.split("."):
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.weight.data.copy_(weight)
            layer.bias.data.copy_(state.get(f"{path}.{last}.bias", torch.zeros(len(weight))))
            place.add_module(last, layer)
    return root


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_one_step_is_the_step_written_plainly_with_diffusers_and_peft(
    kind: str, tmp_path: Path, configure: Configure
) -> None:
    from peft import LoraConfig, get_peft_model

    data = DataConfig(source="tests.training.toy:squares", size=48, enlarge=True, aspect_limit=2)
    optimizer = OptimizerConfig(learning_rate=1e-2, eps=1e-3, weight_decay=0.1, clip=0.5, ema=0.9)
    config = configure(kind, tmp_path, data=data, optimizer=optimizer, job={"dropout": 0.5, "min_snr": 5.0})
    job = make_job(config)
    assert isinstance(job.ensemble, UNetEnsemble)
    theirs = get_peft_model(
        make_unet(job.ensemble.denoiser),
        LoraConfig(r=3, lora_alpha=6, target_modules=["to_q", "to_k", "to_v", "to_out.0"]),
    )
    down = {name: half for name, half in theirs.named_parameters() if "lora_A" in name}
    up = {name: half for name, half in theirs.named_parameters() if "lora_B" in name}
    for name, own in start_of(job).items():
        down[f"base_model.model.{name}.lora_A.default.weight"].data.copy_(own)
    batch = next(job.batches(range(1)))

    Loop(job, config, tmp_path, Workers(CPU), lambda step: {}).run(1, Record(tmp_path))

    generator = generator_for(0, "step", 0, 0)
    places, dropped = (torch.rand(4, generator=generator) for _ in range(2))
    times = (torch.rand(4, generator=generator) * 1000).long()
    clean = batch.pixels * job.ensemble.latent_scale
    noise = torch.randn(clean.shape, generator=generator)
    texts = [
        "" if drop < 0.5 else captions[int(place * 2)]
        for captions, place, drop in zip(batch.texts, places, dropped, strict=True)
    ]
    bars = torch.tensor([noise_schedule(0.00085, 0.012).alpha_bars[time] for time in times])
    alpha, sigma = bars.sqrt()[:, None, None, None], (1 - bars).sqrt()[:, None, None, None]
    context, more = encoded(job.ensemble, texts)
    label = None
    if more is not None:
        assert clean.shape[-2:] == (48 // job.ensemble.vae.config.downscale,) * 2
        numbers = torch.tensor([[32, 32, 0, 0, 48, 48]] * 4, dtype=torch.float32)
        label = {"text_embeds": more, "time_ids": numbers}
    (said,) = theirs(alpha * clean + sigma * noise, times.float(), context, added_cond_kwargs=label, return_dict=False)
    errors = ((said - noise) ** 2).mean(dim=(1, 2, 3))
    ratio = bars / (1 - bars)
    ((ratio.clamp(max=5) / ratio) * errors).mean().backward()
    weights = [*down.values(), *up.values()]
    torch.nn.utils.clip_grad_norm_(weights, 0.5)
    torch.optim.AdamW(weights, lr=1e-2 / 2, betas=(0.9, 0.99), eps=1e-3, weight_decay=0.1).step()

    assert isinstance(job.student, LowRank)
    changes = job.student.changes(torch.float32).pieces
    for name, ours in job.student.layers.items():
        (piece,) = changes[f"{ours}.weight"]
        assert (piece.down - down[f"base_model.model.{name}.lora_A.default.weight"]).abs().max() < 1e-6
        assert (piece.up - up[f"base_model.model.{name}.lora_B.default.weight"]).abs().max() < 1e-6
    assert len(job.student.layers) == len(down)


def start_of(job: DenoiserTraining) -> dict[str, Tensor]:
    """Return the inner matrices as they are, by the names of layers in published files."""
    assert isinstance(job.student, LowRank)
    pieces = job.student.changes(torch.float32).pieces
    return {name: pieces[f"{ours}.weight"][0].down for name, ours in job.student.layers.items()}


@torch.no_grad()
def encoded(ensemble: UNetEnsemble, texts: list[str]) -> tuple[Tensor, Tensor | None]:
    """Return the features of texts, and the pooled ones of SDXL, with the transformers library."""
    hidden, pooled = [], None
    xl = len(ensemble.pipeline.readers) == 2
    for reader in ensemble.pipeline.readers:
        ids = torch.tensor([row_of(reader, text) for text in texts])
        found: Any = make_encoder(reader.encoder)(input_ids=ids, output_hidden_states=True)
        hidden.append(found.hidden_states[-2] if xl else found.last_hidden_state)
        pooled = getattr(found, "text_embeds", None)
    return torch.cat(hidden, dim=-1), pooled if xl else None


def row_of(reader: Any, text: str) -> list[int]:
    marks = reader.tokenizer.marks
    ids = [*marks.before, *reader.tokenizer.encode(text), *marks.after]
    return ids + [marks.padding] * (reader.tokenizer.max_length - len(ids))


def test_checkpoints_hold_the_average(tmp_path: Path, configure: Configure) -> None:
    config = configure("hunyuan_dit", tmp_path / "run", steps=2)
    train(config)
    job = make_job(config)
    loop = Loop(job, config, tmp_path / "run", Workers(CPU), lambda step: {})
    loop.resume()

    saved = tensors(tmp_path / "run" / "checkpoints" / "step-000002" / "adapter_model.safetensors")

    key = "base_model.model.blocks.0.attn1.Wqkv.lora_B.weight"
    up: Any = job.networks["lora"].get_submodule("blocks/0/self_attn/qkv").up
    assert not torch.equal(saved[key], up)
    with loop.averaged():
        assert torch.equal(saved[key], up)


def test_sdxl_is_told_where_pictures_come_from(configure: Configure, tmp_path: Path) -> None:
    job = make_job(configure("sdxl", tmp_path))
    told: list[Tensor] = []
    job.ensemble.denoiser.register_forward_pre_hook(lambda _, inputs: told.append(inputs[4]))

    predict = job.ensemble.told(["a", "b"], [Frame(100, 200, 3, 4), Frame(50, 60)], (8, 16))
    predict(torch.zeros(2, 4, 8, 16), torch.zeros(2))

    scale = job.ensemble.vae.config.downscale
    assert told[0].tolist() == [[100, 200, 3, 4, 8 * scale, 16 * scale], [50, 60, 0, 0, 8 * scale, 16 * scale]]


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_features_that_are_kept_give_the_loss_of_those_that_are_not(
    kind: str, tmp_path: Path, configure: Configure
) -> None:
    losses = []
    for changes in ({}, {"data": {"memory": 0}}, {"job": {"cache": False}}):
        config = configure(kind, tmp_path, job=changes.get("job"))
        config = replace(config, data=replace(config.data, **changes.get("data", {})))
        job = make_job(config)
        losses.append(job.loss(next(job.batches(range(1))), generator_for(0, "x"))["loss"].item())

    assert losses == [pytest.approx(losses[0], rel=1e-5)] * 3


@pytest.mark.parametrize("kind", ["hunyuan_dit", "sdxl"])
def test_recomputed_activations_give_the_same_gradients(kind: str, tmp_path: Path, configure: Configure) -> None:
    jobs = [make_job(configure(kind, tmp_path, checkpoint_activations=chosen)) for chosen in (False, True)]

    for job in jobs:
        torch.autograd.backward(job.loss(next(job.batches(range(1))), generator_for(0, "x"))["loss"])

    for one, other in zip(*(job.networks["lora"].parameters() for job in jobs), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_layers_may_be_chosen_and_may_be_convolutions(tmp_path: Path, configure: Configure) -> None:
    lora = LoRAConfig(rank=2, layers=("mid_block.resnets.0.conv1", "proj_in", "to_v"))
    config = configure("sd15", tmp_path / "run", steps=2, lora=lora)

    final = train(config)

    written = tensors(final / "adapter_model.safetensors")
    kernel = "base_model.model.mid_block.resnets.0.conv1.lora_{}.weight"
    assert written[kernel.format("A")].shape == (2, 96, 3, 3)
    assert written[kernel.format("B")].shape == (96, 2, 1, 1)
    manager, _ = load("sd15", config)
    assert next(iter(manager.load_lora(final).layers.values())) == len(written) // 2


@pytest.mark.parametrize(
    ("kind", "lora", "message"),
    [
        ("hunyuan_dit", ("Wqvk",), "hunyuan_dit has no layer whose name ends in Wqvk"),
        ("sdxl", ("to_k", "attn1.to_o"), "unet has no layer whose name ends in attn1.to_o"),
        ("sdxl-refiner", (), "is a refiner; take the base network of SDXL"),
        ("sd15-inpainting", (), "is an inpainting network, with 9 channels in"),
    ],
)
def test_what_cannot_be_a_base_is_refused(
    kind: str, lora: tuple[str, ...], message: str, tmp_path: Path, configure: Configure
) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        train(configure(kind, tmp_path, lora=LoRAConfig(layers=lora)))


def test_settings_that_contradict_a_frozen_base_are_named_together(tmp_path: Path, files: Path) -> None:
    with pytest.raises(InvalidRequest) as caught:
        denoiser_config(tmp_path, files, lora=LoRAConfig())

    assert "denoiser.train_text_encoders: must be false with [lora]" in str(caught.value)
    assert "denoiser.network: must be the file of a trained network" in str(caught.value)
    with pytest.raises(InvalidRequest, match="unet: is the base of a LoRA; give \\[lora\\] too"):
        replace(unet_config(tmp_path, files / "sd15.safetensors"), lora=None)
    with pytest.raises(InvalidRequest, match="lora: needs a denoiser"):
        autoencoder_config(tmp_path, lora=LoRAConfig())


def test_a_missing_file_of_the_base_is_named_before_the_data_is_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"unet.files: .*gone.safetensors: cannot be opened"):
        train(unet_config(tmp_path, tmp_path / "gone.safetensors"), Squares(0))


def test_a_run_does_not_go_on_with_what_changes_the_meaning_of_its_matrices(
    tmp_path: Path, configure: Configure
) -> None:
    run = tmp_path / "run"
    first = configure("hunyuan_dit", run, steps=1)
    assert first.denoiser is not None
    train(first)
    other = shutil.copytree(str(Path(str(first.denoiser.network)).parent), tmp_path / "other")
    base = next(other.iterdir())
    save_file({key: 2 * weight for key, weight in tensors(base).items()}, base)

    for changes, message in (
        ({"lora": LoRAConfig(rank=3, alpha=3)}, "  lora.alpha: was 6.0, is 3.0"),
        ({"lora": LoRAConfig(rank=4, alpha=6)}, "  lora.rank: was 3, is 4"),
        ({"job": {"network": str(base)}}, "  base.sha256: was "),
    ):
        with pytest.raises(InvalidRequest, match=re.escape(message)):
            train(configure("hunyuan_dit", run, steps=2, **changes))


def test_the_loss_falls_on_a_toy(tmp_path: Path, configure: Configure) -> None:
    config = configure("hunyuan_dit", tmp_path / "run", steps=40, lora=LoRAConfig(rank=16))
    config = replace(config, record=replace(config.record, sample_every=0, checkpoint_every=100),
                     optimizer=OptimizerConfig(learning_rate=1e-2))  # fmt: skip
    losses: list[float] = []

    train(config, on_step=lambda report: losses.append(report.values["loss"]))

    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])

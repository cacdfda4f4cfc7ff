"""The denoiser job: one step against Diffusers, what is cached, what learns, and pictures from the result."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diffsynth import HunyuanDiTImagePipeline, ModelManager
from diffsynth.core.saving import to_layout
from diffsynth.errors import InvalidRequest
from diffsynth.models import hunyuan_dit
from diffsynth.models.hunyuan_dit.model import HunyuanDiT
from diffsynth.models.hunyuan_dit.rope import build_rope
from diffsynth.schedulers.betas import noise_schedule
from diffsynth.training import OptimizerConfig, TrainingConfig, train
from diffsynth.training.denoiser import DenoiserTraining, choose_texts
from diffsynth.training.devices import Workers
from diffsynth.training.loop import Loop
from diffsynth.training.pictures import Pictures
from diffsynth.training.randomness import generator_for
from diffsynth.training.record import Record
from diffsynth.training.run import denoiser_training
from tests import diffusers_networks
from tests.training.toy import CLIP, DIT, Squares, denoiser_config, networks_of

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def make_job(config: TrainingConfig, cache: Path | None = None) -> DenoiserTraining:
    pictures = Pictures(Squares(), config.data, config.seed, captions=True)
    return denoiser_training(config, pictures, CPU, cache)


def diffusers_network(ours: HunyuanDiT) -> Any:
    config = ours.config
    theirs = diffusers_networks.hunyuan_dit(config)
    theirs.load_state_dict(to_layout(ours, hunyuan_dit.FAMILY.layout("diffusers"), config))
    return theirs


def test_one_step_is_the_step_written_plainly_with_diffusers(tmp_path: Path, files: Path) -> None:
    optimizer = OptimizerConfig(learning_rate=1e-3, eps=1e-3, weight_decay=0.1, clip=0.5, ema=0.9)
    config = denoiser_config(tmp_path, files, optimizer=optimizer, job={"min_snr": 5.0, "dropout": 0.5})
    job = make_job(config)
    dit = diffusers_network(networks_of(job).denoiser)
    bert, t5 = (copy.deepcopy(side.encoder) for side in (networks_of(job).text.clip, networks_of(job).text.t5))
    batch = next(job.batches(range(1)))

    Loop(job, config, tmp_path, Workers(CPU), lambda step: {}).run(1, Record(tmp_path))

    generator = generator_for(0, "step", 0, 0)
    places, dropped = (torch.rand(4, generator=generator) for _ in range(2))
    times = (torch.rand(4, generator=generator) * 1000).long()
    clean = batch.pixels * 0.13025
    noise = torch.randn(clean.shape, generator=generator)
    texts = [
        "" if drop < 0.5 else captions[int(place * 2)]
        for captions, place, drop in zip(batch.texts, places, dropped, strict=True)
    ]
    bars = torch.tensor([noise_schedule(0.00085, 0.018).alpha_bars[time] for time in times])
    alpha, sigma = bars.sqrt()[:, None, None, None], (1 - bars).sqrt()[:, None, None, None]
    words, pieces = (side.tokenizer(texts) for side in (networks_of(job).text.clip, networks_of(job).text.t5))
    config_ = networks_of(job).denoiser.config
    rope = build_rope(8, 8, config_.head_dim)
    (said,) = dit(
        alpha * clean + sigma * noise,
        times.float(),
        encoder_hidden_states=bert.bert(input_ids=words.ids, attention_mask=words.mask).last_hidden_state,  # type: ignore[operator]
        text_embedding_mask=words.mask,
        encoder_hidden_states_t5=t5.t5(input_ids=pieces.ids, attention_mask=pieces.mask).last_hidden_state,  # type: ignore[operator]
        text_embedding_mask_t5=pieces.mask,
        image_rotary_emb=(rope.cos, rope.sin),
        return_dict=False,
    )
    errors = ((said[:, :4] - (alpha * noise - sigma * clean)) ** 2).mean(dim=(1, 2, 3))
    ratio = bars / (1 - bars)
    ((ratio.clamp(max=5) / (ratio + 1)) * errors).mean().backward()
    networks = [dit, bert, t5]
    weights = [weight for network in networks for weight in network.parameters()]
    torch.nn.utils.clip_grad_norm_(weights, 0.5)
    tables = {id(each.weight) for net in networks for each in net.modules() if isinstance(each, torch.nn.Embedding)}
    decays = [weight for weight in weights if weight.ndim > 1 and id(weight) not in tables]
    others = [weight for weight in weights if weight.ndim <= 1 or id(weight) in tables]
    groups = [{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    torch.optim.AdamW(groups, lr=1e-3 / 2, betas=(0.9, 0.99), eps=1e-3).step()  # half: the warm-up has two steps

    ours = to_layout(networks_of(job).denoiser, hunyuan_dit.FAMILY.layout("diffusers"), config_)
    pairs = [(ours[name], weight) for name, weight in dit.state_dict().items()]
    for side, encoder in ((networks_of(job).text.clip, bert), (networks_of(job).text.t5, t5)):
        pairs += zip(side.encoder.parameters(), encoder.parameters(), strict=True)
    assert max(float((found - expected).detach().abs().max()) for found, expected in pairs) < 1e-6


def test_the_loss_falls_on_a_toy(tmp_path: Path, files: Path) -> None:
    config = denoiser_config(tmp_path / "run", files, steps=60, optimizer=OptimizerConfig(learning_rate=3e-3))
    config = replace(config, record=replace(config.record, sample_every=0, checkpoint_every=100))
    losses: list[float] = []

    train(config, on_step=lambda report: losses.append(report.values["loss"]))

    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_result_loads_through_the_manager_and_draws(tmp_path: Path, files: Path, dtype: str) -> None:
    config = denoiser_config(tmp_path / "run", files, steps=2)

    final = train(replace(config, record=replace(config.record, dtype=dtype)))  # type: ignore[arg-type]

    manager = ModelManager(torch_dtype=torch.float32, device="cpu")
    manager.load_models(sorted(final.rglob("*.safetensors")))
    pipeline = HunyuanDiTImagePipeline.from_model_manager(manager)
    image = pipeline("a panda on blue", seed=0, height=32, width=32, num_inference_steps=2)
    assert image.size == (32, 32)
    recipe = next(entry for entry in manager if entry.family.name == "hunyuan_dit").checkpoint.metadata["training"]
    assert '"step": 2' in recipe
    assert '"prediction": "velocity"' in recipe


def test_checkpoints_hold_the_average_and_load_too(tmp_path: Path, files: Path) -> None:
    config = denoiser_config(tmp_path / "run", files, steps=2)
    train(config)

    manager = ModelManager(torch_dtype=None, device="cpu")
    manager.load_models(sorted((tmp_path / "run" / "checkpoints" / "step-000002").glob("*/*.safetensors")))

    job = make_job(config)
    loop = Loop(job, config, tmp_path / "run", Workers(CPU), lambda step: {})
    loop.resume()
    saved = manager.fetch_model(HunyuanDiT).state_dict()
    with loop.averaged():
        assert all(torch.equal(saved[name], weight) for name, weight in networks_of(job).denoiser.state_dict().items())
    assert not all(torch.equal(saved[name], weight) for name, weight in networks_of(job).denoiser.state_dict().items())


def test_latents_are_cached_on_disk_and_made_anew_for_other_data(
    tmp_path: Path, files: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = denoiser_config(tmp_path, files)
    other = replace(config, data=replace(config.data, variants=2))
    caplog.set_level(logging.INFO, "diffsynth")

    batches = [next(make_job(each, tmp_path / "cache").batches(range(1))) for each in (config, config, other)]

    assert Counter(record.message for record in caplog.records)["encoding 12 pictures"] == 1
    assert Counter(record.message for record in caplog.records)["encoding 24 pictures"] == 1
    assert torch.equal(batches[0].pixels, batches[1].pixels)


def test_cached_latents_give_the_loss_of_the_pictures(tmp_path: Path, files: Path) -> None:
    losses = []
    for cache in (True, False):
        job = make_job(denoiser_config(tmp_path, files, job={"cache": cache}))
        losses.append(job.loss(next(job.batches(range(1))), generator_for(0, "x"))["loss"].item())

    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def frozen(tmp_path: Path, files: Path, **job: Any) -> TrainingConfig:
    final = train(denoiser_config(tmp_path / "first", files, steps=1))
    encoders = {
        "clip": str(final / "clip_text_encoder" / "pytorch_model.safetensors"),
        "t5": str(final / "mt5" / "pytorch_model.safetensors"),
        "clip_tokenizer": "",
        "t5_tokenizer": "",
        "train_text_encoders": False,
    }
    return denoiser_config(tmp_path / "second", files, job={**encoders, **job})


def test_frozen_text_encoders_are_cached_and_stay_as_they_are(tmp_path: Path, files: Path) -> None:
    config = frozen(tmp_path, files)
    cached, direct = make_job(config), make_job(frozen(tmp_path, files, cache=False))
    before = [weight.clone() for weight in networks_of(cached).text.clip.encoder.parameters()]

    losses = [job.loss(next(job.batches(range(1))), generator_for(0, "x"))["loss"].item() for job in (cached, direct)]
    train(config)

    assert set(cached.networks) == {"denoiser"}
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    manager = ModelManager(torch_dtype=None, device="cpu")
    manager.load_models(sorted((tmp_path / "second" / "final").rglob("*.safetensors")))
    after = manager.fetch_model("bert_clip").parameters()
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_captions_are_chosen_evenly_and_left_out_as_often_as_asked() -> None:
    generator = torch.Generator().manual_seed(0)

    found = Counter(choose_texts([("a", "b")] * 4000, 0.2, generator))

    assert {text: count / 4000 for text, count in found.items()} == pytest.approx(
        {"": 0.2, "a": 0.4, "b": 0.4}, abs=0.03
    )


@pytest.mark.parametrize("prediction", ["velocity", "epsilon", "flow"])
def test_every_objective_trains_and_draws_samples(tmp_path: Path, files: Path, prediction: str) -> None:
    job = make_job(denoiser_config(tmp_path, files, job={"prediction": prediction, "min_snr": 5.0}))

    losses = job.loss(next(job.batches(range(1))), generator_for(0, "x"))
    samples = job.samples(2, 0)

    assert losses["loss"].isfinite()
    assert samples.sheet.size == (2 * 32 + 12, 32 + 8)


def test_a_network_with_size_conditioning_trains_too(tmp_path: Path, files: Path) -> None:
    job = make_job(denoiser_config(tmp_path, files, job={"network": {**DIT, "size_conditioning": True}}))

    assert job.loss(next(job.batches(range(1))), generator_for(0, "x"))["loss"].isfinite()
    assert job.samples(1, 0).sheet.size == (40, 40)


def test_checkpointed_activations_give_the_same_gradients(tmp_path: Path, files: Path) -> None:
    jobs = [make_job(denoiser_config(tmp_path, files, checkpoint_activations=chosen)) for chosen in (False, True)]

    for job in jobs:
        torch.autograd.backward(job.loss(next(job.batches(range(1))), generator_for(0, "x"))["loss"])

    pairs = zip(*(networks_of(job).denoiser.parameters() for job in jobs), strict=True)
    assert all(
        torch.equal(one.grad, other.grad) for one, other in pairs if one.grad is not None and other.grad is not None
    )


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (
            {"network": {**DIT, "pooler_heads": 4}},
            "hunyuan_dit: a saved file does not tell pooler_heads; only pooler_heads = 8",
        ),
        ({"network": {**DIT, "heads": 4}}, "hunyuan_dit has no size heads"),
        ({"network": {**DIT, "hidden_size": 50}}, "these sizes make no hunyuan_dit"),
        ({"network": {**DIT, "text_dim": 20}}, "the denoiser's text_dim is 20, but the other networks need 64"),
        ({"clip": {**CLIP, "max_positions": 8}}, "clip has 8 positions, but the denoiser reads 24 tokens"),
        ({"clip_tokenizer": ""}, "a new text encoder needs the vocabulary"),
        ({"train_text_encoders": False}, "a text encoder is new; it has to learn"),
    ],
)
def test_networks_that_do_not_fit_are_refused(tmp_path: Path, files: Path, job: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make_job(denoiser_config(tmp_path, files, job=job))

    assert message in str(caught.value)

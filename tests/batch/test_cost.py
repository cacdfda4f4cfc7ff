"""What a job is said to cost against what is counted and measured when it is drawn, and a dry run that says it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from diffsynth import HunyuanDiTImagePipeline, SDImagePipeline, SDXLImagePipeline
from diffsynth.batch import make_plan, read_entries
from diffsynth.batch.cost import Estimate, Kind, Sample, kinds_of_steps
from diffsynth.batch.plan import Plan
from diffsynth.batch.rehearsal import Rehearsal
from diffsynth.cli.costs import costs, size
from diffsynth.models.autoencoder_kl.config import AutoencoderKLConfig
from diffsynth.models.hunyuan_dit.config import HunyuanDiTConfig
from diffsynth.pipelines.monitor import Monitor
from tests.adapters import write_ip_adapter
from tests.pipelines.toy import load_toy, write_control, write_toy
from tests.pipelines.unet.toy import load, write_release

PICTURE = Image.linear_gradient("L").convert("RGB")
MASK = Image.radial_gradient("L")


def plan_of(pipe: Any, *rows: dict[str, Any], batch_size: int | None = None) -> Plan:
    entries = read_entries([{"prompt": "a", "seed": 1, **row} for row in rows], pipe.request_type)
    return make_plan(pipe, entries, names="{index}.png", batch_size=batch_size)


def hunyuan_dit_step(config: HunyuanDiTConfig, height: int, width: int) -> int:
    """Return the operations of a step for one row, by the paper's sizes; height and width are those of the latents."""
    tokens = height * width // config.patch_size**2
    size, depth, text = config.hidden_size, config.depth, config.text_len + config.t5_len
    own = 8 * depth * tokens * size**2 + 4 * depth * tokens**2 * size
    cross = 4 * depth * tokens * size**2 + 4 * depth * tokens * text * size
    mlp = 4 * depth * tokens * size * config.mlp_size
    skips = 4 * len(config.skip_sources) * tokens * size**2
    ends = 2 * tokens * size * config.patch_size**2 * 3 * config.in_channels
    return own + cross + mlp + skips + ends


def released(pipe: HunyuanDiTImagePipeline, **changes: Any) -> HunyuanDiTImagePipeline:
    """Return a pipeline with the sizes and dtypes of the release, and no weights."""
    models = []
    for model in pipe.models:
        config = replace(type(model.config)(), **(changes if model is pipe.models[0] else {}))
        dtype = torch.float32 if isinstance(config, AutoencoderKLConfig) else torch.float16
        module = model.family.build_on_meta(config)
        models.append(replace(model, found=replace(model.found, config=config), module=module, dtype=dtype))
    return pipe.with_models(models)


@pytest.mark.parametrize(("side", "gflops"), [(256, 671), (512, 2859), (1024, 14272), (2048, 102441)])
def test_a_step_of_the_released_model_costs_what_its_sizes_say(side: int, gflops: float) -> None:
    assert hunyuan_dit_step(HunyuanDiTConfig(), side // 8, side // 8) / 1e9 == pytest.approx(gflops, rel=2e-3)


def test_the_released_model_is_counted_whole(pipe: HunyuanDiTImagePipeline) -> None:
    whole = released(pipe)
    plan = plan_of(whole, {"height": 1024, "width": 1024, "num_inference_steps": 20, "cfg_scale": 6.0})

    estimate = Estimate(whole, plan)

    step = hunyuan_dit_step(whole.denoiser.config, 128, 128)
    assert estimate.denoising == pytest.approx(2 * 20 * step, rel=1e-3)
    assert estimate.decoding / 1e12 == pytest.approx(0.85 * 10.5, rel=0.01)  # a sixth less than the textbook's
    assert estimate.reading / 1e12 == pytest.approx(2 * 0.65, rel=0.01)
    assert estimate.operations / 1e12 / 150 == pytest.approx(3.9, abs=0.05)  # seconds at 150 TFLOP/s
    parameters = {type(model.config).__name__: model.module.parameters() for model in whole.models}
    counted = {name: sum(weight.numel() for weight in weights) for name, weights in parameters.items()}
    assert counted["HunyuanDiTConfig"] / 1e9 == pytest.approx(1.4999, abs=1e-4)
    assert estimate.text_weights == 2 * (counted["BertClipConfig"] + counted["MT5Config"])
    assert estimate.weights == 2 * sum(counted.values()) + 2 * counted["AutoencoderKLConfig"]
    memory = estimate.memory
    assert memory["denoising"].activations / 2 == pytest.approx(354e6 + 145e6, rel=0.02)  # a row, and what it is told
    assert estimate.features == (77 * 1024 + 256 * 2048) * 2 + 77 + 256
    assert memory["denoising"].weights == memory["texts"].weights == estimate.weights
    estimate.low_memory = True
    spared = estimate.memory
    assert spared["texts"] == memory["texts"]
    assert spared["decoding"].total == memory["decoding"].total - estimate.text_weights


def test_versions_1_0_and_1_1_have_a_little_more(pipe: HunyuanDiTImagePipeline) -> None:
    older = Rehearsal(released(pipe, size_conditioning=True))

    newer = Rehearsal(released(pipe))

    assert (older.weights - newer.weights) / 2e9 == pytest.approx(1.5165 - 1.4999, abs=1e-4)


Made = tuple[Any, dict[str, Any]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Return name → a pipeline and settings to draw with it."""
    folder = tmp_path_factory.mktemp("networks")
    small: dict[str, Any] = {"height": 64, "width": 96, "num_inference_steps": 2, "cfg_scale": 2.0}

    @cache
    def path(name: str) -> Path:
        (folder / name).mkdir()
        return write_release(folder / name, name)

    @cache
    def hunyuan() -> tuple[list[Path], list[Path]]:
        paths = write_toy(folder / "toy")
        return paths, [write_control(folder / f"{name}.pt", seed=seed) for seed, name in enumerate("ab")]

    hows: dict[str, dict[str, Any]] = {
        "HunyuanDiT controlled": {
            "controlnet_images": [PICTURE, PICTURE], "controlnet_starts": [0.5, 0.0], "controlnet_ends": [1.0, 0.5],
        },
        "HunyuanDiT enlarged": {"hires_scale": 1.5, "hires_steps": 3},
        "HunyuanDiT tiled": {"perturbed_attention_scale": 1.0, "tiled": True, "tile_size": 8, "tile_stride": 4},
        "SD controlled": {"controlnet_images": [PICTURE], "controlnet_ends": 0.5},
        "SD over": {"input_image": PICTURE, "mask_image": MASK, "denoising_strength": 0.6},
        "SD seeing": {"ipadapter_images": [PICTURE]},
        "SD enlarged": {"hires_scale": 2.0, "hires_upscale": "latent"},
        "SDXL refined": {"refiner_start": 0.5},
    }  # fmt: skip

    def make(name: str) -> Made:
        settings = {**small, **hows.get(name, {})}
        if name.startswith("HunyuanDiT"):
            paths, controls = hunyuan()
            return load_toy([*paths, *(controls if name.endswith("controlled") else [])]), settings
        if name.startswith("SDXL"):
            return load([path("sdxl"), path("sdxl-refiner")], SDXLImagePipeline, refiner=True), settings
        files = [path("sd15"), *([path("sd15-controlnet")] if name.endswith("controlled") else [])]
        files += write_ip_adapter(folder / "adapter", "sd15") if name.endswith("seeing") else []
        return load(files, SDImagePipeline), settings

    return make


CASES = (
    "HunyuanDiT", "HunyuanDiT controlled", "HunyuanDiT enlarged", "HunyuanDiT tiled",
    "SD controlled", "SD over", "SD seeing", "SD enlarged", "SDXL refined",
)  # fmt: skip


def attention(queries: Sequence[int], keys: Sequence[int], values: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * queries[0] * queries[1] * queries[2] * keys[2] * (queries[3] + values[3])


def peak(call: Callable[[], Any]) -> int:
    """Return the most bytes that torch's allocator had given out at a time during a call, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = call()
    del result
    events = [each for each in found.profiler.kineto_results.events() if each.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@pytest.mark.parametrize("name", CASES)
def test_operations_and_memory_are_those_that_are_measured_while_it_is_drawn(
    made: Callable[[str], Made], name: str
) -> None:
    pipe, settings = made(name)
    plan = plan_of(pipe, *({**settings, "seed": seed} for seed in range(2)), batch_size=2)
    requests = pipe.prepare([plan.groups[0].request(pipe, item) for item in plan.items])
    text = pipe.texts_of(requests[0])[-1]

    estimate = Estimate(pipe, plan)

    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        texts = pipe.encode_texts(requests)
        latents = pipe.draw_latents(requests, texts, Monitor(iter))
        pipe.decode(requests, latents)
    assert estimate.operations == pytest.approx(counter.get_total_flops(), rel=1e-3)
    measured = {
        "texts": peak(lambda: pipe.encode(text)),
        "denoising": peak(lambda: pipe.draw_latents(requests, texts, Monitor(iter))),
        "decoding": peak(lambda: pipe.decode(requests[:1], latents[:1])),
    }
    assert estimate.weights == sum(model.nbytes for model in pipe.models)
    for stage, nbytes in measured.items():
        assert estimate.memory[stage].activations == pytest.approx(nbytes, rel=0.1), stage


def test_steps_are_told_apart_by_the_networks_that_they_ask(made: Callable[[str], Made]) -> None:
    pipe, settings = made("HunyuanDiT controlled")
    (request,) = pipe.prepare([pipe.request_type(prompt="a", seed=1, **{**settings, "num_inference_steps": 5})])
    refined, its = made("SDXL refined")
    (other,) = refined.prepare([refined.request_type(prompt="a", seed=1, **{**its, "num_inference_steps": 5})])

    one, none, two = (Kind(0, acting) for acting in ((False, True), (False, False), (True, False)))
    assert kinds_of_steps(pipe, request) == {one: 2, none: 1, two: 2}
    assert kinds_of_steps(refined, other) == {Kind(0, ()): 2, Kind(1, ()): 3}


def test_a_step_of_one_kind_is_rehearsed_once_and_the_pipeline_is_not_touched(
    pipe: HunyuanDiTImagePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    rehearsed: list[int] = []
    stage = Rehearsal.stage
    monkeypatch.setattr(Rehearsal, "stage", lambda self, requests: (rehearsed.append(1), stage(self, requests))[1])  # type: ignore[func-returns-value]
    before = dict(vars(pipe))
    small = {"height": 32, "width": 32}
    changes: list[dict[str, Any]] = [
        {"num_inference_steps": 2}, {"num_inference_steps": 4}, {"cfg_scale": 3.0}, {"scheduler": "unipc"},
        {"cfg_scale": 1.0}, {"width": 48},
    ]  # fmt: skip

    estimate = Estimate(
        pipe, plan_of(pipe, *({**small, "prompt": str(number), **each} for number, each in enumerate(changes)))
    )

    assert len(estimate.plan.groups) == 6
    assert len(rehearsed) == 3
    assert vars(pipe) == before


def test_a_dry_run_says_images_texts_operations_memory_and_time(pipe: HunyuanDiTImagePipeline) -> None:
    row = {"prompt": "a", "height": 32, "width": 32, "num_inference_steps": 2, "cfg_scale": 2.0, "seed": 1}
    job = [row, row, {**row, "seed": 2}, {**row, "prompt": "b", "num_inference_steps": 4}]
    plan = plan_of(pipe, *job, batch_size=2)

    estimate = Estimate(pipe, plan)
    told = "\n".join(costs(pipe, plan, 1000, 150.0))
    spared = "\n".join(costs(pipe, plan, None, None, low_memory=True))

    assert estimate.texts == 3
    assert estimate.kept == 3 * estimate.features
    assert estimate.seconds(Sample(9.0, 2.0, estimate.denoising / 3, estimate.decoding / 4)) == pytest.approx(
        3 * 2 + 3 + 4
    )
    sample = estimate.measure()
    assert 0 < sample.text < sample.seconds
    memory = estimate.memory
    for line in (
        "images      3, and 1 that are the same as others",
        "texts       3 distinct",
        f"weights     {size(estimate.weights)}, of which text encoders {size(estimate.text_weights)}",
        f"memory      texts      {size(memory['texts'].total)}: weights {size(estimate.weights)}, activations ",
        f"            decoding   {size(memory['decoding'].total)}: ",
        f"without --low-memory, and {size(estimate.kept)} of text features",
        "devices     1000 of 150 TFLOP/s, as given; only 2 have work, for there are no more batches",
    ):
        assert line in told
    left = estimate.weights - estimate.text_weights
    assert f"            denoising  {size(left + memory['denoising'].activations)}: weights {size(left)}, " in spared
    estimate.low_memory = True
    most = max(stage.total for stage in estimate.memory.values())
    assert f"at most    {size(most)} with --low-memory" in spared


@pytest.mark.parametrize(("nbytes", "words"), [(8.94e9, "8.94 GB"), (7.1e8, "710 MB"), (12_345, "12.3 KB")])
def test_sizes_are_told_in_words(nbytes: float, words: str) -> None:
    assert size(nbytes) == words

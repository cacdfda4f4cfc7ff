"""What only an accelerator can show. Run with ``pytest -m gpu`` on a machine that has one; skipped elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffsynth import HunyuanDiTImagePipeline, ModelManager
from diffsynth.core.placement import best_device
from examples.random_models import write_models
from tests.pipelines.toy import largest_difference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(best_device().type == "cpu", reason="there is no accelerator here"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_models(tmp_path_factory.mktemp("models"), size_conditioning=True)


def draw(files: list[Path], dtype: torch.dtype, device: str | torch.device) -> Image.Image:
    manager = ModelManager(torch_dtype=dtype, device=device, file_path_list=files)
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    image: Image.Image = pipe("一只獾", seed=3, height=128, width=96, num_inference_steps=4)
    return image


def test_a_seed_means_the_same_image_on_both_devices(files: list[Path]) -> None:
    expected = draw(files, torch.float32, "cpu")

    found = draw(files, torch.float32, best_device())

    assert largest_difference(found, expected) <= 2


def test_half_precision_is_close_to_full(files: list[Path]) -> None:
    expected = draw(files, torch.float32, best_device())

    found = draw(files, torch.float16, best_device())

    assert largest_difference(found, expected) <= 24


def test_networks_move_and_release_gives_their_memory_back(files: list[Path]) -> None:
    before = torch.accelerator.memory_allocated()
    manager = ModelManager(torch_dtype=torch.float16, device="cpu", file_path_list=files)

    manager.to(best_device())
    held = torch.accelerator.memory_allocated() - before
    manager.release()

    assert held >= 10_000_000
    assert torch.accelerator.memory_allocated() == before


def test_text_encoders_give_their_memory_back_before_the_rest_draws(files: list[Path]) -> None:
    manager = ModelManager(torch_dtype=torch.float16, device=best_device(), file_path_list=files)
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    requests = pipe.prepare([pipe.request_type(prompt="a", seed=3, height=128, width=96, num_inference_steps=2)])
    expected = pipe.draw(requests)[0]
    texts = pipe.encode_texts(requests).to("cpu")
    weights = sum(manager.find(kind).nbytes for kind in ("bert_clip", "mt5"))
    before = torch.accelerator.memory_allocated()

    pipe.release_text_encoders()

    assert before - torch.accelerator.memory_allocated() >= weights
    (image,) = pipe.decode(requests, pipe.draw_latents(requests, texts))
    assert largest_difference(image, expected) == 0


@pytest.mark.parametrize("scheduler", ["ddim", "ddpm", "dpm++2m_sde"])
def test_the_denoising_loop_never_waits_for_the_device(files: list[Path], scheduler: str) -> None:
    if best_device().type != "cuda":
        pytest.skip("only CUDA can report when the host waits")
    manager = ModelManager(torch_dtype=torch.float16, device=best_device(), file_path_list=files)
    pipe = HunyuanDiTImagePipeline.from_model_manager(manager)
    modes: list[int] = []

    def inside(timesteps: Iterable[float]) -> Iterable[float]:
        torch.cuda.set_sync_debug_mode("error")
        modes.append(1)
        try:
            yield from timesteps
        finally:
            torch.cuda.set_sync_debug_mode("default")

    pipe("一只獾", seed=3, height=128, width=128, num_inference_steps=4, scheduler=scheduler, progress_bar_cmd=inside)

    assert modes

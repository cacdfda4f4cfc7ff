"""A LoRA on every layer of every family, in each of its layouts, is what adding it to the file's weights gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffsynth import ModelManager
from diffsynth.core.saving import to_layout
from tests.lora import files
from tests.test_contract import Case, each_case, network_of, write

SCALE = 0.7


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in module.state_dict().items()}


def load(path: Path, dtype: torch.dtype = torch.float32) -> ModelManager:
    manager = ModelManager(device="cpu", torch_dtype=dtype)
    manager.load_model(path, torch_dtype=dtype)
    return manager


@each_case
def test_attached_and_merged_it_is_what_changing_the_file_gives(case: Case, tmp_path: Path) -> None:
    theirs = to_layout(network_of(case), case.layout, case.config)
    layers = files.layers_of(theirs)
    files.write(tmp_path / "lora.safetensors", files.kohya(layers, alpha=2 * files.RANK))
    manager = load(write(case, tmp_path))
    changed = files.changed(theirs, layers, 2 * SCALE)
    other = load(files.write(tmp_path / "changed.safetensors", changed))
    (entry,), (expected,) = manager, other
    before = bits(entry.module)

    attached = manager.load_lora(tmp_path / "lora.safetensors", SCALE)

    assert entry.module.state_dict().keys() == before.keys()
    assert sum(attached.layers.values()) >= len({key for key in before if is_layer(entry.module, key)})
    for name, layer in entry.module.named_modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            sample = sample_for(layer)
            torch.testing.assert_close(layer(sample), expected.module.get_submodule(name)(sample), atol=1e-5, rtol=1e-5)

    attached.merge()

    for key, weight in expected.module.state_dict().items():
        torch.testing.assert_close(entry.module.state_dict()[key], weight, atol=1e-5, rtol=1e-5)
    assert manager.loras == (attached,)


def is_layer(module: nn.Module, key: str) -> bool:
    return key.endswith(".weight") and isinstance(module.get_submodule(key[: -len(".weight")]), (nn.Linear, nn.Conv2d))


def sample_for(layer: nn.Linear | nn.Conv2d) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    if isinstance(layer, nn.Linear):
        return torch.randn(2, 3, layer.in_features, generator=generator)
    side = max(6, *layer.kernel_size)
    return torch.randn(2, layer.in_channels, side, side, generator=generator)


@each_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_taken_off_every_weight_is_what_it_was_to_the_last_bit(case: Case, tmp_path: Path, dtype: torch.dtype) -> None:
    theirs = to_layout(network_of(case), case.layout, case.config)
    files.write(tmp_path / "lora.safetensors", files.peft(files.layers_of(theirs)))
    manager = load(write(case, tmp_path), dtype)
    (entry,) = manager
    before = bits(entry.module)

    lora = manager.load_lora(tmp_path / "lora.safetensors", SCALE)
    lora.scale = -3.0
    lora.detach()

    after = entry.module.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert not any(layer._forward_hooks for layer in entry.module.modules())
    assert manager.loras == ()

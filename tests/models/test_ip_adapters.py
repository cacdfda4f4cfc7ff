"""IP-Adapters: the classes of diffusers on equal weights, HunyuanDiT's by the formula, and files as published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffsynth.core.saving import to_layout
from diffsynth.manager import ModelManager
from diffsynth.models import hunyuan_dit_ip_adapter, ip_adapter
from diffsynth.models.hunyuan_dit_ip_adapter.config import HunyuanDiTIPAdapterConfig
from diffsynth.models.hunyuan_dit_ip_adapter.model import HunyuanDiTIPAdapter
from diffsynth.models.ip_adapter.config import IPAdapterConfig
from diffsynth.models.ip_adapter.model import IPAdapter
from tests.spellings import assert_same_weights, lively

TINY, TINY_DIT = IPAdapterConfig.tiny(), HunyuanDiTIPAdapterConfig.tiny()
ADAPTER: IPAdapter = lively(ip_adapter.FAMILY)
DIT_ADAPTER: HunyuanDiTIPAdapter = lively(hunyuan_dit_ip_adapter.FAMILY)


def embeds(size: int) -> Tensor:
    return torch.randn(3, 2, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_tokens_are_those_of_diffusers() -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    theirs = embeddings.ImageProjection(TINY.embed_size, TINY.context_size, TINY.tokens)
    theirs.image_embeds.load_state_dict(ADAPTER.proj.state_dict())
    theirs.norm.load_state_dict(ADAPTER.norm.state_dict())

    expected = embeddings.MultiIPAdapterImageProjection([theirs])([embeds(TINY.embed_size)])[0]

    found = ADAPTER.tokens(embeds(TINY.embed_size))
    assert found.shape == (3, 2 * TINY.tokens, TINY.context_size)
    torch.testing.assert_close(found, expected.flatten(1, -2), atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_tokens_and_keys_of_hunyuan_dit_follow_the_formula() -> None:
    state = to_layout(DIT_ADAPTER, hunyuan_dit_ip_adapter.FAMILY.layouts[0], TINY_DIT)
    one = embeds(TINY_DIT.embed_size)[:, :1]

    spread = F.linear(one[:, 0], *layer(state, "ip_adapter_clip_len_trans_block")).reshape(3, TINY_DIT.text_dim, 7)
    expected = F.layer_norm(spread.mT, (TINY_DIT.text_dim,), *layer(state, "ip_adapter_img_norm_cond"), eps=1e-5)
    kv = F.linear(expected, *layer(state, "blocks.4.attn2.kv_proj_ip_adapter")).reshape(3, 7, 2, 3, 16)
    expected_keys = F.layer_norm(kv[:, :, 0], (16,), *layer(state, "blocks.4.attn2.k_norm_ip_adapter"), eps=1e-6)

    found = DIT_ADAPTER.tokens(one)
    keys, values = DIT_ADAPTER.keys_values(found)[4]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(keys, expected_keys, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(values, kv[:, :, 1], atol=1e-5, rtol=1e-5)


def layer(state: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return state[f"{name}.weight"], state[f"{name}.bias"]


@torch.no_grad()
@pytest.mark.parametrize("adapter", [ADAPTER, DIT_ADAPTER], ids=["unet", "hunyuan_dit"])
def test_tokens_of_several_pictures_are_those_of_each_in_order(adapter: IPAdapter | HunyuanDiTIPAdapter) -> None:
    several = embeds(adapter.config.embed_size)

    found = adapter.tokens(several)

    each = torch.cat([adapter.tokens(several[:, place : place + 1]) for place in range(2)], dim=1)
    torch.testing.assert_close(found, each, atol=1e-6, rtol=1e-6)


def test_a_torch_file_of_two_dicts_is_loaded_as_the_published_ones_are(tmp_path: Path) -> None:
    state = to_layout(ADAPTER, ip_adapter.FAMILY.layouts[0], TINY)
    nested: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in state.items():
        part, _, name = key.partition(".")
        nested[part][name] = tensor
    torch.save(nested, tmp_path / "ip-adapter_sd15.bin")

    (entry,) = ModelManager(torch_dtype=torch.float32, device="cpu").load_model(tmp_path / "ip-adapter_sd15.bin")

    assert entry.config == TINY
    assert_same_weights(entry.module, ADAPTER)


@pytest.mark.parametrize(
    ("config", "tensors", "parameters", "version"),
    [(IPAdapterConfig(), 36, 22_319_616, "SD 1.5"), (IPAdapterConfig.sdxl(), 144, 351_285_248, "SDXL")],
)
def test_the_released_sizes(config: IPAdapterConfig, tensors: int, parameters: int, version: str) -> None:
    state = ip_adapter.FAMILY.build_on_meta(config).state_dict()

    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (tensors, parameters)
    assert config.version == version


def test_the_released_size_of_hunyuan_dit() -> None:
    state = hunyuan_dit_ip_adapter.FAMILY.build_on_meta(HunyuanDiTIPAdapterConfig()).state_dict()

    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (164, 123_861_888)


def test_sizes_that_contradict_one_another_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a layer and a token"):
        IPAdapterConfig(widths=())
    with pytest.raises(ValueError, match="hidden_size 48 is not a multiple of num_heads 5"):
        HunyuanDiTIPAdapterConfig(hidden_size=48, num_heads=5)

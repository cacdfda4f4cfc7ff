"""CLIP's text encoder: golden numbers, the transformers class run plainly, layers, pooling, and added tokens."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffsynth.core.convert import Converter
from diffsynth.core.saving import to_layout
from diffsynth.errors import InvalidRequest
from diffsynth.manager import ModelManager
from diffsynth.models import clip
from diffsynth.models.clip.config import ClipTextConfig
from diffsynth.models.clip.model import ClipText
from tests.models import golden
from tests.spellings import lively, liven

TINY = ClipTextConfig.tiny()
GOLDEN = ClipTextConfig(
    vocab_size=99, hidden_size=32, num_layers=4, mlp_size=64, max_positions=12, head_dim=8, end_token=98
)
TEXT = [97, 5, 7, 11]


@cache
def network_of(config: ClipTextConfig) -> ClipText:
    network: ClipText = lively(clip.FAMILY, config)
    return network


def theirs_of(config: ClipTextConfig) -> Any:
    """The transformers class of the same sizes, with textbook attention and weights of its own."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sizes = CLIPTextConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.mlp_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        max_position_embeddings=config.max_positions,
        hidden_act="quick_gelu" if config.quick_gelu else "gelu",
        projection_dim=config.projection_size,
        bos_token_id=config.end_token - 1,
        eos_token_id=config.end_token,
        attn_implementation="eager",
    )
    return liven((CLIPTextModelWithProjection if config.projection_size else CLIPTextModel)(sizes))


def tokens(config: ClipTextConfig) -> Tensor:
    ids = torch.randint(1, config.end_token, (3, 9), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate((1, 8, 4)):
        ids[row, length:] = config.end_token
    return ids


def golden_network(config: ClipTextConfig) -> ClipText:
    rules = Converter(clip.FAMILY.layout("transformers").rules(config))
    network = ClipText(config).eval()
    shapes = {key: tuple(t.shape) for key, t in rules.to_theirs(network.state_dict()).items()}
    network.load_state_dict(rules.to_ours(golden.weights(shapes)))
    return network


@torch.inference_mode()
def test_golden_numbers_of_clip_l() -> None:
    network, ids = golden_network(GOLDEN), torch.tensor([TEXT + [98] * 8])

    last = network(ids)
    raw = network(ids, clip_skip=2, final_norm=False)
    normed = network(ids, clip_skip=2)

    assert last.pooled is None
    golden.assert_golden(last.hidden, 0.004051, 0.978208, -0.157107, 1.403463, 0.861528, 0.097735, -0.530026)
    golden.assert_golden(raw.hidden, 0.371022, 1.585061, -0.365335, 1.995222, 2.035546, 0.334594, 0.354862)
    golden.assert_golden(normed.hidden, 0.011314, 0.983972, -0.367264, 0.829269, 1.199842, -0.019202, -0.137253)


@torch.inference_mode()
def test_golden_numbers_of_open_clip() -> None:
    network = golden_network(replace(GOLDEN, quick_gelu=False, projection_size=24))

    found = network(torch.tensor([[*TEXT, 98, *[0] * 7]]), clip_skip=2, final_norm=False)

    assert found.pooled is not None
    golden.assert_golden(found.hidden, 0.214431, 1.743924, -0.402980, 1.988567, 2.023973, -0.789989, 0.508762)
    golden.assert_golden(found.pooled, -0.550653, 0.679200, 0.299026, 0.542788, -0.733435, -0.637077, -0.534517)


@torch.inference_mode()
@pytest.mark.parametrize("config", [TINY, replace(TINY, projection_size=0)], ids=["projected", "plain"])
def test_it_gives_the_features_of_transformers(config: ClipTextConfig, tmp_path: Path) -> None:
    theirs, ids = theirs_of(config), tokens(config)
    theirs.save_pretrained(tmp_path / "text_encoder")
    (entry,) = ModelManager(torch_dtype=torch.float32, device="cpu").load_model(tmp_path / "text_encoder")

    expected = theirs(ids, output_hidden_states=True)

    assert entry.config == config
    assert entry.found.layout.name in ("transformers", "transformers-bare")  # newer versions save no outer level
    found = entry.module(ids)
    torch.testing.assert_close(found.hidden, expected.last_hidden_state, atol=1e-5, rtol=1e-5)
    skipped = entry.module(ids, clip_skip=2, final_norm=False)
    torch.testing.assert_close(skipped.hidden, expected.hidden_states[-2], atol=1e-5, rtol=1e-5)
    if config.projection_size:
        torch.testing.assert_close(found.pooled, expected.text_embeds, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(skipped.pooled, expected.text_embeds, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_converter_of_diffusers_reads_our_open_clip_names() -> None:
    pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    config = replace(TINY, projection_size=TINY.hidden_size)  # square, so that nothing but numbers shows a transpose
    network, theirs = network_of(config), theirs_of(config)
    state = to_layout(network, clip.FAMILY.layout("open_clip"), config)

    converted = convert_open_clip_checkpoint(theirs, {f"x.{key}": tensor for key, tensor in state.items()}, "x.")

    expected = to_layout(network, clip.FAMILY.layout("transformers"), config)
    assert converted.keys() == expected.keys()
    assert all(torch.equal(converted[key], tensor) for key, tensor in expected.items())


@torch.inference_mode()
def test_a_token_sees_those_before_it_only() -> None:
    network, ids = network_of(TINY), tokens(TINY)
    other = ids.clone()
    other[:, 5:] = 7

    torch.testing.assert_close(network(ids).hidden[:, :5], network(other).hidden[:, :5], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_text_is_pooled_at_its_first_end_token_or_else_at_its_first() -> None:
    network, ids = network_of(TINY), tokens(TINY)
    project = network.text_projection

    for row, place in enumerate((1, 8, 4)):
        torch.testing.assert_close(network(ids).pooled[row], project(network(ids).hidden[row, place]))
    endless = ids.clamp(max=50)
    torch.testing.assert_close(network(endless).pooled, project(network(endless).hidden[:, 0]))


@torch.inference_mode()
def test_extra_tokens_have_the_numbers_after_the_vocabulary() -> None:
    network, ids = network_of(TINY), tokens(TINY)
    extra = network.text.get_input_embeddings().weight[[5, 9]] * 1.0
    swapped = ids.clone()
    ids[0, 0], ids[1, 2], swapped[0, 0], swapped[1, 2] = 5, 9, 61, 62

    found = network(swapped, extra_tokens=extra)

    assert torch.equal(found.hidden, network(ids).hidden)
    assert torch.equal(found.pooled, network(ids).pooled)
    assert network.text.get_input_embeddings().weight.shape == (61, 128)


@torch.inference_mode()
def test_a_batch_of_texts_equals_one_at_a_time() -> None:
    network, ids = network_of(TINY), tokens(TINY)

    together = network(ids, clip_skip=2)

    for row in range(3):
        alone = network(ids[row : row + 1], clip_skip=2)
        torch.testing.assert_close(together.hidden[row], alone.hidden[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_finite_and_near(dtype: torch.dtype) -> None:
    expected = network_of(TINY)(tokens(TINY))
    half: ClipText = lively(clip.FAMILY, TINY)

    found = half.to(dtype)(tokens(TINY))

    assert found.hidden.dtype == found.pooled.dtype == dtype
    assert (found.hidden.float() - expected.hidden).abs().max() < 0.1 * expected.hidden.abs().max()


@pytest.mark.parametrize(
    ("config", "tensors", "parameters"),
    [(ClipTextConfig(), 196, 123_060_480), (ClipTextConfig.big_g(), 517, 694_659_840)],
    ids=["CLIP-L", "OpenCLIP bigG"],
)
def test_the_released_sizes(
    config: ClipTextConfig, tensors: int, parameters: int, request: pytest.FixtureRequest
) -> None:
    state = clip.FAMILY.build_on_meta(config).state_dict()

    assert (len(state), sum(tensor.numel() for tensor in state.values())) == (tensors, parameters)
    assert config.version == request.node.callspec.id


def test_what_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"clip_skip is 4, but must be from 1 .* to 3"):
        network_of(TINY)(tokens(TINY), clip_skip=4)
    with pytest.raises(InvalidRequest, match="texts of 81 tokens do not fit a text encoder of 80"):
        network_of(TINY)(torch.zeros(1, 81, dtype=torch.int64))
    with pytest.raises(ValueError, match="end_token 61 is none of 61 tokens"):
        replace(TINY, end_token=61)
    with pytest.raises(ValueError, match="hidden_size 100 is not a multiple of head_dim 64"):
        replace(TINY, hidden_size=100)

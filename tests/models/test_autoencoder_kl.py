"""The autoencoder against the Diffusers class, and what it promises beyond."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diffsynth.models.autoencoder_kl.config import AutoencoderKLConfig
from diffsynth.models.autoencoder_kl.model import AutoencoderKL, Posterior
from diffsynth.models.autoencoder_kl.tiled import decode_tiled, encode_tiled

CONFIGS = [
    AutoencoderKLConfig.tiny(),
    AutoencoderKLConfig(channels=(8, 24, 24), layers_per_block=2, norm_groups=4),
    AutoencoderKLConfig(channels=(12, 6), layers_per_block=3, norm_groups=3, latent_channels=5, in_channels=2),
    AutoencoderKLConfig(channels=(10,), layers_per_block=1, norm_groups=5),
]

SMALL = AutoencoderKLConfig(channels=(8, 12), layers_per_block=1, norm_groups=4)


def reference(config: AutoencoderKLConfig) -> Any:
    """The Diffusers autoencoder of the same sizes, with weights and biases of order one, norms included."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the independent implementation")
    levels = len(config.channels)
    torch.manual_seed(0)
    model = diffusers.AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
    )
    randomise_norms(model)
    return model.eval()


def randomise_norms(model: torch.nn.Module) -> None:
    """Move the affine part of every norm away from identity, where mistakes would not show."""
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            torch.nn.init.normal_(module.weight, 1.0, 0.3)
            torch.nn.init.normal_(module.bias, 0.0, 0.3)


def build(config: AutoencoderKLConfig, seed: int = 0) -> AutoencoderKL:
    torch.manual_seed(seed)
    model = AutoencoderKL(config).eval().requires_grad_(False)
    randomise_norms(model)
    return model


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference in units of the expected tensor's largest value, at least one."""
    return float((found - expected).detach().abs().max() / expected.detach().abs().max().clamp(min=1.0))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "x".join(map(str, config.channels)))
@pytest.mark.parametrize("grad", [False, True], ids=["no grad", "grad"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["32", "64"])
def test_equals_diffusers(config: AutoencoderKLConfig, grad: bool, dtype: torch.dtype, tolerance: float) -> None:
    """Same names, same numbers: encode, decode; double precision would show a wrong eps."""
    theirs = reference(config).to(dtype)
    ours = AutoencoderKL(config).to(dtype)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    pixels = torch.rand(2, config.in_channels, 3 * config.downscale, 5 * config.downscale, dtype=dtype) * 2 - 1

    with torch.set_grad_enabled(grad):
        posterior, expected = ours.encode(pixels), theirs.encode(pixels).latent_dist
        decoded, expected_pixels = ours.decode(expected.mean), theirs.decode(expected.mean).sample

    assert relative(posterior.mean, expected.mean) < tolerance
    assert relative(posterior.std, expected.std) < tolerance
    assert relative(decoded, expected_pixels) < tolerance
    assert posterior.mean.shape == (2, config.latent_channels, 3, 5)
    assert decoded.shape == pixels.shape


def test_attention_in_parts_is_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries that are taken a few at a time, the last part smaller, give what all of them give."""
    model = build(AutoencoderKLConfig.tiny())
    latents = torch.randn(2, 4, 3, 5)
    whole = model.decode(latents)

    monkeypatch.setattr("diffsynth.models.autoencoder_kl.model.LOGITS_AT_ONCE", 2 * 15 * 4)

    assert relative(model.decode(latents), whole) < 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: "x".join(map(str, config.channels)))
def test_without_a_gradient_it_decodes_what_it_decodes_with_one(config: AutoencoderKLConfig) -> None:
    """The way that saves memory and time against the textbook's."""
    model = build(config)
    latents = torch.randn(2, config.latent_channels, 6, 3)
    textbook = model.decode(latents)

    with torch.no_grad():
        assert relative(model.decode(latents), textbook) < 1e-5


def test_the_released_sizes_have_the_released_tensors() -> None:
    """The default configuration is the published network: 248 tensors, 83,653,863 values."""
    with torch.device("meta"):
        state = AutoencoderKL(AutoencoderKLConfig()).state_dict()

    assert len(state) == 248
    assert sum(tensor.numel() for tensor in state.values()) == 83_653_863
    assert state["decoder.up_blocks.2.resnets.0.conv_shortcut.weight"].shape == (256, 512, 1, 1)


def test_norm_out_eps_changes_the_decoders_last_norm_only() -> None:
    """Another eps equals the same network whose last decoder norm was built with that eps."""
    model = build(AutoencoderKLConfig.tiny())
    latents = torch.randn(1, 4, 4, 4) * 0.01

    default, stated, other = (
        model.decode(latents),
        model.decode(latents, norm_out_eps=1e-6),
        model.decode(latents, norm_out_eps=1e-2),
    )
    theirs = reference(model.config)
    theirs.load_state_dict(model.state_dict())
    theirs.decoder.conv_norm_out.eps = 1e-2
    expected = theirs.decode(latents).sample

    assert torch.equal(default, stated)
    assert not torch.allclose(default, other, atol=1e-4)
    assert relative(other, expected) < 1e-5


def test_sampling_the_posterior_scales_and_shifts_the_noise() -> None:
    mean, std = torch.randn(1, 4, 2, 3), torch.rand(1, 4, 2, 3)
    noise = torch.randn(1, 4, 2, 3, dtype=torch.float64)

    sample = Posterior(mean, std).sample(noise)

    assert sample.dtype == torch.float32
    torch.testing.assert_close(sample, mean + std * noise.float())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_near_float32(dtype: torch.dtype) -> None:
    full = build(AutoencoderKLConfig.tiny())
    half = build(AutoencoderKLConfig.tiny()).to(dtype)
    pixels = torch.rand(1, 3, 32, 48) * 2 - 1

    latents, pixels_again = half.encode(pixels).mean, half.decode(full.encode(pixels).mean)

    assert latents.dtype == pixels_again.dtype == dtype
    assert latents.isfinite().all()
    assert relative(latents.float(), full.encode(pixels).mean) < 0.1
    assert relative(pixels_again.float(), full.decode(full.encode(pixels).mean)) < 0.1


def test_an_image_that_would_lose_a_rim_is_refused() -> None:
    model = build(AutoencoderKLConfig.tiny())

    with pytest.raises(ValueError, match="44x32 px, but its sides must be multiples of 8"):
        model.encode(torch.zeros(1, 3, 32, 44))


def test_inputs_are_left_as_they_were() -> None:
    """Steps that work in place never reach the caller's tensor."""
    model = build(AutoencoderKLConfig.tiny())
    pixels, latents = torch.randn(1, 3, 16, 16), torch.randn(1, 4, 2, 2)
    before = pixels.clone(), latents.clone()

    with torch.inference_mode():
        model.encode(pixels)
        model.decode(latents)

    assert torch.equal(pixels, before[0])
    assert torch.equal(latents, before[1])


def test_gradients_reach_every_weight() -> None:
    model = build(AutoencoderKLConfig.tiny()).requires_grad_(True)

    posterior = model.encode(torch.randn(1, 3, 16, 16))
    pixels = model.decode(posterior.sample(torch.randn_like(posterior.mean)))
    torch.autograd.backward(pixels.square().mean())

    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("size", [(1, 1), (4, 4), (4, 9), (13, 7)])
@pytest.mark.parametrize(("tile", "stride"), [(4, 3), (5, 5), (8, 4)])
def test_tiles_cover_any_size(size: tuple[int, int], tile: int, stride: int) -> None:
    """No cell is left without a value, sides shorter than a tile included."""
    model = build(SMALL)
    latents = torch.randn(2, 4, *size)

    pixels = decode_tiled(model, latents, tile, stride)
    posterior = encode_tiled(model, pixels.clamp(-1, 1), tile, stride)

    assert pixels.shape == (2, 3, 2 * size[0], 2 * size[1])
    assert posterior.mean.shape == posterior.std.shape == latents.shape
    assert pixels.isfinite().all()
    assert posterior.mean.isfinite().all()
    assert (posterior.std > 0).all()


def test_an_image_within_one_tile_is_as_without_tiles() -> None:
    model = build(SMALL)
    latents, pixels = torch.randn(1, 4, 5, 6), torch.rand(1, 3, 10, 12) * 2 - 1

    decoded, posterior = decode_tiled(model, latents, 6, 3, norm_out_eps=1e-3), encode_tiled(model, pixels, 6, 3)

    assert torch.equal(decoded, model.decode(latents, norm_out_eps=1e-3))
    assert torch.equal(posterior.mean, model.encode(pixels).mean)
    assert torch.equal(posterior.std, model.encode(pixels).std)


def test_cells_of_a_single_tile_are_that_tiles() -> None:
    """Outside the overlap nothing is blended: the corner is the first tile's corner."""
    model = build(SMALL)
    latents, pixels = torch.randn(1, 4, 10, 10), torch.rand(1, 3, 20, 20) * 2 - 1

    decoded, posterior = decode_tiled(model, latents, 6, 4), encode_tiled(model, pixels, 6, 4)

    torch.testing.assert_close(decoded[..., :8, :8], model.decode(latents[..., :6, :6])[..., :8, :8])
    torch.testing.assert_close(posterior.mean[..., :4, :4], model.encode(pixels[..., :12, :12]).mean[..., :4, :4])


def test_tiles_are_blended_over_half_a_stride_towards_all_sides() -> None:
    """The sum of weighted tiles over the sum of weights, written plainly."""
    model = build(AutoencoderKLConfig.tiny())
    tile, stride, scale = 8, 4, model.config.downscale
    latents = torch.randn(1, 4, 12, 16)
    x, y = torch.meshgrid(torch.arange(tile * scale), torch.arange(tile * scale), indexing="ij")
    end = tile * scale
    nearest = torch.stack([x + 1, end - x, y + 1, end - y]).amin(dim=0)
    mask = (nearest / (stride * scale / 2)).clamp(0, 1)
    total, weight = torch.zeros(1, 3, 12 * scale, 16 * scale), torch.zeros(12 * scale, 16 * scale)
    for top in (0, 4):
        for left in (0, 4, 8):
            part = model.decode(latents[:, :, top : top + tile, left : left + tile])
            rows, columns = (slice(start * scale, (start + tile) * scale) for start in (top, left))
            total[:, :, rows, columns] += part * mask
            weight[rows, columns] += mask

    found = decode_tiled(model, latents, tile, stride)

    torch.testing.assert_close(found, total / weight, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_results_lie_in_memory_as_any_tensor_does() -> None:
    model = build(AutoencoderKLConfig.tiny())

    assert model.encode(torch.randn(1, 3, 32, 32)).mean.is_contiguous()
    assert model.decode(torch.randn(1, 4, 4, 4)).is_contiguous()


def test_a_tiled_image_that_would_lose_a_rim_is_refused() -> None:
    with pytest.raises(ValueError, match="44x32 px, but its sides must be multiples of 8"):
        encode_tiled(build(AutoencoderKLConfig.tiny()), torch.zeros(1, 3, 32, 44), 2, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"channels": (32, 40)}, "width 40 of channels is not a multiple of norm_groups 32"), ({"channels": ()}, "level")],
)
def test_impossible_sizes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoencoderKLConfig(**change)

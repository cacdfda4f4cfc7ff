"""The UNet of Stable Diffusion and SDXL: noisy latents and a prompt's features in, the predicted noise out."""

from __future__ import annotations

from torch import Tensor, nn

from diffsynth.models.unet.condition import Controls, Plan
from diffsynth.models.unet.config import UNetConfig
from diffsynth.models.unet.encoder import Encoder, level_sizes
from diffsynth.nn.attention import AttentionHook, plain_attention
from diffsynth.nn.in_place import silu
from diffsynth.nn.unet_blocks import RESNET_EPS, LevelCondition, UpLevel


class UNet(Encoder):
    """Denoiser of latents that attends to a prompt (arXiv 2112.10752; for SDXL arXiv 2307.01952).

    It predicts the noise, or the velocity if it was trained so, which no file tells. `forward` does everything at
    once. A denoising loop does it in three steps, so that no step repeats what does not change: `encode_condition`
    per prompt, `plan` per image, `denoise` per step. The results are the same.

    In shapes: B images, H and W latent height and width, L text tokens, P features of the pooled prompt, K numbers.
    H and W may be any sizes.
    """

    config: UNetConfig

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        widths, last = config.channels, len(config.channels) - 1
        skips, taken = config.skip_channels[::-1], config.layers_per_block + 1
        self.up_blocks = nn.ModuleList(
            UpLevel(
                widths[min(level + 1, last)],
                skips[(last - level) * taken : (last - level + 1) * taken],
                level_sizes(config, level),
                last=level == 0,
            )
            for level in range(last, -1, -1)
        )
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, widths[0], eps=RESNET_EPS)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)
        self.name_attentions()

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Tensor,
        pooled: Tensor | None = None,
        numbers: Tensor | None = None,
        *,
        controls: Controls | None = None,
        attention: AttentionHook = plain_attention,
    ) -> Tensor:
        """Predict the noise, each image at its own timestep.

        Args:
            latents: (B, in_channels, H, W), scaled to about unit variance.
            timestep: (B,), training index from 0 (clean) to 999 (noise); floats of full precision or integers.
            context: (B, L, context_size), see `encode_condition`.
            pooled: (B, P), see `encode_condition`.
            numbers: (B, K), see `encode_condition`.
            controls: what control networks add.
            attention: what mixes queries, keys and values in every attention.

        Returns:
            (B, out_channels, H, W) in the dtype of ``latents``.

        Raises:
            ValueError: if a shape does not fit the network.
        """
        condition = self.encode_condition(context, pooled, numbers)
        time = self._embed_time(timestep, condition)  # (B, T)
        return self._run(latents, LevelCondition(time, self._keys_values(condition), attention), controls)

    def denoise(
        self,
        latents: Tensor,
        step: int,
        plan: Plan,
        *,
        controls: Controls | None = None,
        attention: AttentionHook = plain_attention,
    ) -> Tensor:
        """Predict the noise at one step of a plan.

        Args:
            latents: (B, in_channels, H, W), scaled to about unit variance.
            step: index into the plan's timesteps.
            plan: with B rows, or one row for all images.
            controls: what control networks add.
            attention: what mixes queries, keys and values in every attention.

        Returns:
            (B, out_channels, H, W) in the dtype of ``latents``.

        Raises:
            ValueError: if a shape does not fit the plan or the network.
        """
        return self._run(latents, self._level_condition(len(latents), step, plan, attention), controls)

    def _run(self, latents: Tensor, condition: LevelCondition, controls: Controls | None) -> Tensor:
        """Run the network on latents: down, the middle, and up again with the outputs of the way down."""
        skips, images = self.encode(latents, condition)
        if controls is not None:
            if len(controls.skips) != len(skips):
                raise ValueError(f"controls for {len(controls.skips)} outputs, but the network has {len(skips)}")
            skips = [skip + control.to(skip) for skip, control in zip(skips, controls.skips, strict=True)]
            images = images + controls.mid.to(images)
        for block in self.up_blocks:
            images = block(images, skips, condition)
        predicted: Tensor = self.conv_out(silu(self.conv_norm_out(images)))
        return predicted.to(latents.dtype)

"""CLIP's text encoder: a thin face on that of the transformers library."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from diffsynth.errors import InvalidRequest
from diffsynth.models.clip.config import ClipTextConfig
from diffsynth.nn.text_encoder import check_clip_skip, copy_buffers


@dataclass(frozen=True)
class ClipFeatures:
    """What a text encoder says of B texts.

    Args:
        hidden: (B, L, hidden_size), features of each token.
        pooled: (B, projection_size), features of each text; None for a network without a projection.
    """

    hidden: Tensor
    pooled: Tensor | None


class ClipText(nn.Module):
    """Causal transformer over the tokens of a text (arXiv 2103.00020).

    A token sees those before it, padding included; there is no other mask.
    """

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModel  # slow to import, and not every pipeline needs it

        self.config = config
        text: Any = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.hidden_size,
                intermediate_size=config.mlp_size,
                num_hidden_layers=config.num_layers,
                num_attention_heads=config.num_heads,
                max_position_embeddings=config.max_positions,
                hidden_act="quick_gelu" if config.quick_gelu else "gelu",
                layer_norm_eps=1e-5,
                attention_dropout=0.0,
                bos_token_id=0,  # pooling is done here, so the library need not know the tokens
                eos_token_id=0,
                pad_token_id=None,
                attn_implementation="sdpa",
            )
        )
        self.text = getattr(text, "text_model", text)  # a level that the library removed in version 5.6
        if config.projection_size:
            self.text_projection = nn.Linear(config.hidden_size, config.projection_size, bias=False)

    def forward(
        self, token_ids: Tensor, *, clip_skip: int = 1, final_norm: bool = True, extra_tokens: Tensor | None = None
    ) -> ClipFeatures:
        """Encode texts.

        Args:
            token_ids: (B, L) int64, L at most ``config.max_positions``.
            clip_skip: the layer that ``hidden`` is taken from, counted from the end: 1 is the last.
            final_norm: whether ``hidden`` goes through the norm at the end of the network, as Stable Diffusion 1.5
                wants it and SDXL does not. The pooled features always do, and come from the last layer.
            extra_tokens: (n, hidden_size), embeddings of the ids from ``config.vocab_size`` on, such as those of a
                textual inversion.

        Returns:
            The features, in the weights' dtype. Those of a text are taken at its first end token, or at its first
            token if it has none.

        Raises:
            InvalidRequest: if there is no such layer, or the texts have more tokens than the network has positions.
        """
        check_clip_skip(clip_skip, self.config.num_layers)
        if token_ids.shape[-1] > self.config.max_positions:
            raise InvalidRequest(
                f"texts of {token_ids.shape[-1]} tokens do not fit a text encoder of {self.config.max_positions}"
            )
        output = self._run(token_ids, extra_tokens)
        hidden: Tensor = output.hidden_states[-clip_skip]
        if final_norm:
            hidden = output.last_hidden_state if clip_skip == 1 else self.text.final_layer_norm(hidden)
        return ClipFeatures(hidden, self._pool(output.last_hidden_state, token_ids))

    def after_load(self) -> None:
        """Rebuild what no file holds, after weights were assigned to a module made on the meta device.

        The library's position numbers are such: they come from a small encoder that it builds itself, so we need
        not know what they are.
        """
        with torch.device("cpu"):
            twin = ClipText(
                replace(
                    self.config, hidden_size=self.config.head_dim, num_layers=1, vocab_size=1, end_token=0, mlp_size=1
                )
            )
        copy_buffers(twin, self, next(self.parameters()).device)

    def _run(self, token_ids: Tensor, extra_tokens: Tensor | None) -> Any:
        wanted = {"input_ids": token_ids, "output_hidden_states": True}
        if extra_tokens is None:
            return self.text(**wanted)
        known = self.text.get_input_embeddings().weight
        table = torch.cat((known, extra_tokens.to(known)))
        (name,) = (name for name, weight in self.text.named_parameters() if weight is known)
        return functional_call(self.text, {name: table}, kwargs=wanted)

    def _pool(self, last: Tensor, token_ids: Tensor) -> Tensor | None:
        if not self.config.projection_size:
            return None
        ends = (token_ids == self.config.end_token).int().argmax(dim=1)  # the first of them; 0 if there is none
        pooled: Tensor = self.text_projection(last[torch.arange(len(last), device=last.device), ends])
        return pooled

"""Attention to pictures beside the text: what IP-Adapters add to every cross-attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from diffsynth.nn.attention import KeysValues, attend


@dataclass(frozen=True, eq=False)
class PictureAttention:
    """Attends to the text and to pictures apart, and adds up (arXiv 2308.06721, section 3.2); an `AttentionHook`.

    Args:
        layers: name of a cross-attention → keys and values of the pictures, each (B, L, heads, head_dim), a row for
            each row that the network is run on. Other attentions are as without it.
        scales: (B,), weight of the pictures in each row.
    """

    layers: Mapping[str, KeysValues]
    scales: Tensor

    def rows(self, index: Sequence[int]) -> PictureAttention:
        """Return some rows, which may repeat."""
        chosen = list(index)
        layers = {name: (keys[chosen], values[chosen]) for name, (keys, values) in self.layers.items()}
        return PictureAttention(layers, self.scales[chosen])

    def __call__(self, name: str, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return (B, N, heads * head_dim) for one attention; see `AttentionHook`."""
        mixed = attend(queries, keys, values)
        if name not in self.layers:
            return mixed
        scales = self.scales.to(mixed)[:, None, None]
        return mixed + scales * attend(queries, *self.layers[name])

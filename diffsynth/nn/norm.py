"""Normalisation layers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LayerNormFloat32(nn.LayerNorm):
    """Layer normalisation computed in float32 whatever the weights and the input are, returned in the input's dtype.

    Half precision overflows where a network's residual stream grows large; this does not.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Normalise the last dimensions.

        Args:
            input: (..., *normalized_shape), any float dtype.

        Returns:
            The same shape and dtype.
        """
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(input.float(), self.normalized_shape, weight, bias, self.eps).to(input.dtype)

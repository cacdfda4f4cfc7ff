"""The autoencoder's golden numbers, from weights that a formula gives."""

from __future__ import annotations

import torch

from diffsynth.models.autoencoder_kl.config import AutoencoderKLConfig
from diffsynth.models.autoencoder_kl.model import AutoencoderKL
from tests.models import golden


@torch.inference_mode()
def test_golden_numbers() -> None:
    network = AutoencoderKL(AutoencoderKLConfig(channels=(32, 64, 128, 128))).eval()
    network.load_state_dict(golden.weights({key: tuple(t.shape) for key, t in network.state_dict().items()}))

    posterior = network.encode(golden.values((1, 3, 64, 96), 1005))
    image = network.decode(golden.values((1, 4, 8, 12), 1006, scale=1.7))

    golden.assert_golden(posterior.mean, -0.033334, 0.605942, -0.396583, 0.159645, 0.395266, 0.181208, 0.075790)
    log_variance = 2 * posterior.std.log()
    golden.assert_golden(log_variance, 0.106692, 0.512752, -0.344749, -0.258163, -0.193418, 0.206484, 0.009796)
    golden.assert_golden(image, -0.043562, 0.620982, 0.244068, -0.127220, -0.082955, 0.083202, 0.148204)

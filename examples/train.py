"""Teach an autoencoder on pictures that a function draws, and load it like any other."""

from random import Random

from PIL import Image

from diffsynth import ModelManager
from diffsynth.training import AutoencoderJob, DataConfig, Example, ScheduleConfig, TrainingConfig, train


class Gradients:
    """Pictures of two colours that melt into each other."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int, rng: Random) -> Example:
        """Draw one."""
        one, other = (Image.new("RGB", (32, 32), f"hsl({rng.randrange(360)}, 80%, 60%)") for _ in "ab")
        return Example(Image.composite(one, other, Image.linear_gradient("L").resize((32, 32))), ())


config = TrainingConfig(
    data=DataConfig(source="this script", size=32, held_out=8),
    autoencoder=AutoencoderJob(network={"channels": [32, 64], "layers_per_block": 1}),
    schedule=ScheduleConfig(steps=20),
)
folder = train(config, Gradients(), folder="gradients", on_step=print)
print(ModelManager(device="cpu", file_path_list=[folder]))

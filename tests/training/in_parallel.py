"""Trains a toy autoencoder in one of several processes; see test_devices.py."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from diffsynth.training import train
from tests.training.toy import autoencoder_config

if __name__ == "__main__":
    torch.set_num_threads(1)
    settings = autoencoder_config(Path(sys.argv[1]), steps=2)
    train(replace(settings, schedule=replace(settings.schedule, batch_size=2)))

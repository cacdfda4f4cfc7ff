"""Toy pipelines that the tests of this folder share; nobody changes them."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from diffsynth import HunyuanDiTImagePipeline

from .toy import load_toy, write_control, write_toy
from .unet.toy import write_release

Load = Callable[..., HunyuanDiTImagePipeline]
Release = Callable[[str], Path]


@pytest.fixture(scope="session")
def v1_2(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the files of a toy version 1.2."""
    return write_toy(tmp_path_factory.mktemp("v1.2"))


@pytest.fixture(scope="session")
def v1_0(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the files of a toy version 1.0, which is told the image's size."""
    return write_toy(tmp_path_factory.mktemp("v1.0"), size_conditioning=True)


@pytest.fixture(scope="session")
def pipeline(v1_0: list[Path], v1_2: list[Path]) -> Load:
    """Return (version, conventions) → a pipeline in float32, each made once."""
    paths = {"v1.0": v1_0, "v1.2": v1_2}

    @cache
    def load(version: str = "v1.2", conventions: str = "diffsynth") -> HunyuanDiTImagePipeline:
        return load_toy(paths[version], conventions)

    return load


@pytest.fixture(scope="session")
def controls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """Return version → the files of two control networks for its toy denoiser."""
    folder = tmp_path_factory.mktemp("controls")
    return {
        version: [
            write_control(folder / f"{name}_{version}.pt", seed=seed, size_conditioning=version == "v1.0")
            for seed, name in enumerate(("canny", "depth"))
        ]
        for version in ("v1.0", "v1.2")
    }


@pytest.fixture(scope="session")
def steered(v1_0: list[Path], v1_2: list[Path], controls: dict[str, list[Path]]) -> Load:
    """Return (version, conventions) → a pipeline with two control networks in float32, each made once."""
    paths = {"v1.0": v1_0, "v1.2": v1_2}

    @cache
    def load(version: str = "v1.2", conventions: str = "diffsynth") -> HunyuanDiTImagePipeline:
        return load_toy([*paths[version], *controls[version]], conventions)

    return load


@pytest.fixture
def pipe(pipeline: Load) -> HunyuanDiTImagePipeline:
    """Return version 1.2 with the default conventions."""
    return pipeline()


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Return name → the file of a release of Stable Diffusion or SDXL, each written once."""

    @cache
    def write(name: str) -> Path:
        return write_release(tmp_path_factory.mktemp(name), name)

    return write

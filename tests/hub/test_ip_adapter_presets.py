"""The IP-Adapters of the catalogue, as they are downloaded, are networks that a pipeline can take pictures with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from diffsynth import ModelManager, download_models
from tests.adapters import write_hunyuan_dit_ip_adapter, write_ip_adapter
from tests.hub.standin import Hub

PRESETS = {
    "IP-Adapter-SD": ("AI-ModelScope/IP-Adapter", "models", "sd15", {"ip_adapter", "clip_vision"}),
    "IP-Adapter-SDXL": ("AI-ModelScope/IP-Adapter", "sdxl_models", "sdxl", {"ip_adapter", "clip_vision"}),
    "HunyuanDiT-IP-Adapter": (
        "Tencent-Hunyuan/IP-Adapter", "", None, {"hunyuan_dit_ip_adapter", "clip_vision"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_what_is_downloaded_is_loaded(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository, inside, release, families = PRESETS[name]
    root = tmp_path / "published"
    if release is None:
        write_hunyuan_dit_ip_adapter(root / inside)
    else:
        write_ip_adapter(root / inside, release)
    held: dict[str, bytes | Path] = {
        path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()
    }
    for variable in ("HF_HUB_OFFLINE", "DIFFSYNTH_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)

    with Hub({repository: held}) as hub:
        for variable, value in hub.env(tmp_path / "cache").items():
            monkeypatch.setenv(variable, value)
        files = download_models([name], local_dir=tmp_path / "models")
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=files)

    assert {entry.family.name for entry in manager} == families

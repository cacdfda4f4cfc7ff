"""Every example runs: the blocks of the READMEs and the files in examples/, with toy models in the place of the real.

The code runs word for word but for the device, the dtype, the size and the number of steps. The small model that
comes with the package is itself; without it, what draws with it is left out.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from diffsynth import download_models
from diffsynth.cli import run
from diffsynth.hub.bundled import files_of
from examples.random_models import write_models
from examples.random_stable_diffusion import write_single_file
from tests.adapters import write_hunyuan_dit_ip_adapter, write_ip_adapter
from tests.hub.standin import Hub
from tests.lora import files

REPO = Path(__file__).parents[1]
READMES = ("README.md", "README_zh.md")
BUNDLED = "HunyuanDiT-Emoji"
ARGUMENTS = {
    "lora_new_object.py": ["--known", "2", "--steps", "2"],
    "random_models.py": ["random"],
    "random_stable_diffusion.py": ["random"],
}
SINGLE_FILES = {
    "models/stable_diffusion/v1-5-pruned-emaonly.safetensors": "sd15",
    "models/stable_diffusion/woodcut.safetensors": "sd15",
    "models/stable_diffusion/ink.safetensors": "sd15",
    "models/stable_diffusion_xl/sd_xl_base_1.0.safetensors": "sdxl",
    "models/stable_diffusion_xl/sd_xl_refiner_1.0.safetensors": "sdxl-refiner",
    "models/ControlNet/controlnet_union/diffusion_pytorch_model_promax.safetensors": "sdxl-union",
}
# Programs more than examples.
LONGER = ("random_models.py", "random_stable_diffusion.py", "contact_sheet.py", "lora_new_object.py")
SMALLER = (
    ('device="cuda"', 'device="cpu"'),
    ("torch.float16", "torch.float32"),
    ("1024", "64"),
    ("512", "32"),
    ("width=768", "width=48"),
    ("num_inference_steps=50", "num_inference_steps=2"),
    ("num_inference_steps=25", "num_inference_steps=2"),
    ("num_inference_steps=20", "num_inference_steps=2"),
    ("steps = 50", "steps = 2"),
    ("workers=2", "workers=1"),
)


def blocks(language: str) -> list[tuple[str, str]]:
    """Return a name and the text of every block in the README; the Chinese one holds the same, as a test below says."""
    texts = re.findall(rf"```{language}\n(.*?)```", (REPO / "README.md").read_text("utf-8"), flags=re.DOTALL)
    return [(f"{language}-{number}", text) for number, text in enumerate(texts, 1)]


def smaller(text: str) -> str:
    for before, after in SMALLER:
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Toy models in the place of the published ones."""
    folder = tmp_path_factory.mktemp("published")
    write_models(folder)
    return folder


@pytest.fixture(scope="module")
def hub(published: Path) -> Iterator[Hub]:
    """Both hubs, with these models."""
    held: dict[str, bytes | Path] = {
        path.relative_to(published).as_posix(): path for path in published.rglob("*") if path.is_file()
    }
    with Hub({"modelscope/HunyuanDiT": held, "Tencent-Hunyuan/HunyuanDiT": held}) as server:
        yield server


@pytest.fixture(scope="module")
def folder(hub: Hub, published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with data to train on; the models are fetched to it before the first document runs."""
    root = tmp_path_factory.mktemp("documents")
    for _, text in blocks("toml"):
        (root / text.splitlines()[0].removeprefix("# ")).write_text(smaller(text), "utf-8")
    (root / "jobs.jsonl").write_text("".join(text for _, text in blocks("json")), "utf-8")
    write_pictures(root / "pictures")
    for name in ("pose", "depth"):
        Image.linear_gradient("L").save(root / f"{name}.png")
    for seed, (path, name) in enumerate(SINGLE_FILES.items()):
        file = write_single_file((root / path).parent, name, seed)
        file.rename(root / path)
    write_loras(root / "models", published)
    write_ip_adapter(root / "models" / "IpAdapter" / "stable_diffusion", "sd15")
    write_ip_adapter(root / "models" / "IpAdapter" / "stable_diffusion_xl", "sdxl")
    write_hunyuan_dit_ip_adapter(root / "models" / "HunyuanDiT-IP-Adapter")
    write_models(root / "models" / "HunyuanDiT-v1.2", controlnets=["canny", "depth"])
    if files_of(BUNDLED):
        download_models([BUNDLED], local_dir=root / "models")
    return root


def write_loras(folder: Path, published: Path) -> None:
    layers = files.layers_of(torch.load(published / "t2i" / "model" / "pytorch_model_ema.pt", weights_only=True))
    jade, ink = folder / "HunyuanDiT-LoRA" / "jade", folder / "lora"
    for home in (jade, ink):
        home.mkdir(parents=True)
    files.write(jade / "adapter_model.safetensors", files.peft(layers))
    (jade / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2, "r": files.RANK}), "utf-8")
    files.write(ink / "ink.safetensors", files.kohya(layers, alpha=1.0))


def write_pictures(folder: Path) -> None:
    folder.mkdir()
    for color in ("red", "blue", "green"):
        Image.new("RGB", (96, 64), color).save(folder / f"{color}.png")
    Image.radial_gradient("L").save(folder.parent / "photo.png")
    lines = "".join(f"{color}.png,a {color} picture\n" for color in ("red", "blue", "green"))
    (folder / "metadata.csv").write_text(f"file_name,text\n{lines}", "utf-8")


@pytest.fixture(autouse=True)
def in_folder(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for name in ("HF_HUB_OFFLINE", "DIFFSYNTH_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in hub.env(folder / "cache").items():
        monkeypatch.setenv(name, value)
    download_models(["HunyuanDiT"])


def test_the_first_script_runs_from_an_empty_folder_to_a_picture(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    script = next(text for name, text in blocks("python") if name == "python-1")
    hub.log.clear()

    run_python(script)

    assert (tmp_path / smaller("image_1024.png")).is_file()
    assert len([request for request in hub.requests("cdn/ms") if request.status == 200]) >= 4


def skip_without_its_model(text: str) -> None:
    if BUNDLED in text and not files_of(BUNDLED):
        pytest.skip("the bundled model is not in this checkout")


def run_python(text: str) -> None:
    exec(compile(smaller(text), "<document>", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in blocks("python")])
def test_python_blocks_of_the_readme_run(text: str, folder: Path) -> None:
    skip_without_its_model(text)
    before = set(folder.rglob("*"))

    run_python(text)

    draws_unsaved = "save" not in text
    assert draws_unsaved or set(folder.rglob("*")) != before


@pytest.mark.parametrize("path", sorted((REPO / "examples").glob("*.py")), ids=lambda path: str(path.name))
def test_examples_run(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text("utf-8")
    skip_without_its_model(text)
    monkeypatch.setattr(sys, "argv", [path.name, *ARGUMENTS.get(path.name, [])])
    before = set(folder.rglob("*"))

    run_python(text)

    assert path.name == "download.py" or set(folder.rglob("*")) != before  # what it fetches is there already


def test_an_example_is_one_idea_in_few_lines() -> None:
    for path in (REPO / "examples").glob("*.py"):
        if path.name not in LONGER:
            assert len(path.read_text("utf-8").splitlines()) <= 30, path.name


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, id=f"{name}-{number}")
        for name, text in blocks("bash")
        for number, line in enumerate(text.splitlines())
        if line.startswith("diffsynth")
    ],
)
def test_commands_of_the_readme_run(line: str) -> None:
    skip_without_its_model(line)
    small = (
        []
        if "--like" in line or not re.match("diffsynth (generate|batch)", line)
        else ["--height", "64", "--width", "64", "--steps", "2"]
    )

    program, *arguments = shlex.split(line)

    assert program == "diffsynth"
    assert run([*arguments, *small]) == 0


def test_both_readmes_hold_the_same_code() -> None:
    english, chinese = ((REPO / name).read_text("utf-8") for name in READMES)

    def code(text: str) -> list[str]:
        return re.findall(r"```\w+\n.*?```", text, flags=re.DOTALL)

    def stripped(parts: list[str]) -> list[str]:
        return [re.sub(r" *#.*", "", part) for part in parts]

    assert stripped(code(english)) == stripped(code(chinese))

"""LoRAs go from any format to any other and back without losing a bit, and mean the same in each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffsynth import HunyuanDiTImagePipeline, ModelManager, SDImagePipeline, SDXLImagePipeline, convert_lora
from diffsynth.core.saving import to_layout
from diffsynth.errors import AdapterMismatch, CorruptCheckpoint, InvalidRequest
from diffsynth.models import hunyuan_dit
from diffsynth.types import StateDict
from examples.random_stable_diffusion import build
from tests.lora import files
from tests.lora.files import Layers
from tests.pipelines.toy import write_toy
from tests.pipelines.unet.toy import write_release

FACTS = Path(__file__).parents[2] / "shared" / "facts" / "layouts"
ALPHA = 1.5  # of a rank of 3: half of it is added
NAMES = {  # model → format → what surrounds the names of the denoiser's layers, and whose names they are
    "hunyuan_dit": {
        "peft": ("base_model.model.", "original"),
        "diffusers": ("transformer.", "diffusers"),
        "kohya": ("lora_unet_", "original"),
        "diffsynth": ("", "diffsynth"),
        "comfyui": ("diffusion_model.", "original"),
        "original": ("unet.", "original"),
    },
    "sd15": {
        "peft": ("base_model.model.", "diffusers"),
        "diffusers": ("unet.", "diffusers"),
        "diffusers-old": ("unet.", "diffusers"),
        "kohya": ("lora_unet_", "diffusers"),
        "diffsynth": ("", "diffsynth"),
        "comfyui": ("diffusion_model.", "ldm"),
    },
}
NAMES["sdxl"] = NAMES["sd15"] | {"kohya": ("lora_unet_", "ldm")}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSYNTH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    """The files of a small model of each kind, the denoiser's first."""
    folder = tmp_path_factory.mktemp("models")
    toy = write_toy(folder / "dit")
    found = {"hunyuan_dit": [toy[2], *toy[:2], *toy[3:]]}
    for name in ("sd15", "sdxl"):
        (folder / name).mkdir()
        found[name] = [write_release(folder / name, name)]
    return found


def denoiser(model: str, layout: str) -> StateDict:
    """Return the weights of a toy denoiser of the sizes of ``models``, in a layout."""
    if model == "hunyuan_dit":
        from tests.pipelines.toy import dit_config

        config = dit_config()
        return to_layout(hunyuan_dit.FAMILY.build(config), hunyuan_dit.FAMILY.layout(layout), config)
    part, module = next((part, module) for part, module in build(model) if part.family.name == "unet")
    return to_layout(module, part.family.layout(layout), part.config)


def some(model: str, layout: str) -> Layers:
    """Return random changes of a part of the layers: attention, in which formats differ most, and a convolution."""
    found = files.layers_of(denoiser(model, layout), strength=0.3)
    words = ("attn", "Wqkv", "proj_in", "conv2", "out_layers", "skip_linear")
    taken = {
        name: pair for name, pair in found.items() if any(word in name for word in words) and "processor" not in name
    }
    return dict(list(taken.items())[:24]) | dict(list(taken.items())[-6:])


def write(
    folder: Path, model: str, name: str, layers: Layers | None = None, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a LoRA by hand in one of the formats."""
    outer, layout = NAMES[model][name]
    layers = some(model, layout) if layers is None else layers
    layers = {key: (up.to(dtype), down.to(dtype)) for key, (up, down) in layers.items()}
    path, told = folder / f"{name}.safetensors", {"r": files.RANK, "lora_alpha": ALPHA}
    match name:
        case "peft":
            path = folder / name / "adapter_model.safetensors"
            path.parent.mkdir(parents=True)
            (path.parent / "adapter_config.json").write_text(json.dumps(told), "utf-8")
            files.write(path, files.peft(layers))
            return path.parent
        case "diffusers":
            settings = {f"{outer}{key}": value for key, value in told.items()}
            return files.write(path, files.peft(layers, outer), lora_adapter_metadata=settings)
        case "diffusers-old":
            attention = {key: pair for key, pair in layers.items() if ".attn" in key}
            others = {key: pair for key, pair in layers.items() if ".attn" not in key}
            return files.write(path, files.processors(attention) | files.dotted(others))
        case "kohya":
            spelt = files.kohya(layers, outer, ALPHA)
            return files.write(path, {key: tensor.to(dtype) for key, tensor in spelt.items()})
        case "diffsynth":
            return files.write(path, files.peft(layers, outer, ".default"))
        case "comfyui":
            alphas = {f"{outer}{key}.alpha": torch.tensor(ALPHA, dtype=dtype) for key in layers}
            return files.write(path, files.peft(layers, outer) | alphas)
        case _:
            alphas = {f"{key}.weight.alpha": torch.tensor(ALPHA, dtype=dtype) for key in layers}
            dots = {key.replace("_", "."): pair for key, pair in layers.items()}
            return files.write(path, files.dotted(dots, outer) | alphas)


def target(folder: Path, name: str) -> Path:
    return folder / ("folder" if name == "peft" else f"{name}.safetensors")


def read(path: Path) -> StateDict:
    """Return the tensors of a LoRA."""
    state: StateDict = load_file(path / "adapter_model.safetensors" if path.is_dir() else path)
    return state


def assert_same_bits(found: StateDict, expected: StateDict) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype, key
        assert torch.equal(found[key], tensor), key


def alpha_said(path: Path) -> Any:
    """Return what a file of peft or Diffusers says of alpha beside its tensors."""
    if path.is_dir():
        return json.loads((path / "adapter_config.json").read_text("utf-8"))["lora_alpha"]
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        table = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    return next((value for key, value in table.items() if key.endswith("lora_alpha")), None)


def trips() -> list[tuple[str, str, str]]:
    """Return a model, a format and another one: HunyuanDiT's to three that differ, and each of the others' to one."""
    found = []
    for model, formats in NAMES.items():
        names = list(formats)
        for number, first in enumerate(names):
            others = ("kohya", "diffusers", "diffsynth") if model == "hunyuan_dit" else (names[number - 1],)
            found += [(model, first, second) for second in others if second != first]
    return [trip for trip in found if trip[0] != "sdxl" or "kohya" in trip]  # the rest is as with Stable Diffusion 1.5


@pytest.mark.parametrize(("model", "first", "second"), trips())
def test_there_and_back_every_bit_is_what_it_was(
    models: dict[str, list[Path]], model: str, first: str, second: str, tmp_path: Path
) -> None:
    source = write(tmp_path, model, first, dtype=torch.float16)
    there, back = target(tmp_path / "there", second), target(tmp_path / "back", first)

    convert_lora(source, there, to=second, model=models[model][0])
    convert_lora(there, back, to=first, model=models[model][0])

    assert_same_bits(read(back), read(source))
    assert alpha_said(back) == alpha_said(source)


KINDS: dict[str, Any] = {"hunyuan_dit": HunyuanDiTImagePipeline, "sd15": SDImagePipeline, "sdxl": SDXLImagePipeline}


@pytest.mark.parametrize("model", NAMES)
def test_one_lora_in_every_format_gives_one_image(models: dict[str, list[Path]], model: str, tmp_path: Path) -> None:
    source = write(tmp_path, model, "kohya")
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=models[model])
    pipe = KINDS[model].from_model_manager(manager)

    def draw() -> Tensor:
        values: Tensor = pipe("a cat", height=64, width=64, num_inference_steps=1, seed=3, output_type="latent").values
        return values

    plain = draw()
    lora = manager.load_lora(source)
    expected = draw()
    lora.detach()
    assert float((expected - plain).abs().max()) > 1e-2

    for name in NAMES[model]:
        path = target(tmp_path / "written", name)
        convert_lora(source, path, to=name, model=models[model][0])
        lora = manager.load_lora(path)
        difference = float((draw() - expected).abs().max() / expected.abs().max())
        lora.detach()
        assert difference < 1e-5, (name, difference)


@pytest.mark.parametrize("to", ["kohya", "diffusers", "diffusers-old", "comfyui"])
def test_text_encoders_come_along(models: dict[str, list[Path]], to: str, tmp_path: Path) -> None:
    spelt: StateDict = {}
    outers = iter(("lora_te1_", "lora_te2_"))
    for part, module in build("sdxl"):
        if part.family.name == "clip":
            state = to_layout(module, part.family.layout("transformers"), part.config)
            spelt |= files.kohya(files.layers_of(state), next(outers), ALPHA)
    spelt |= read(write(tmp_path, "sdxl", "kohya"))
    source = files.write(tmp_path / "all.safetensors", spelt, ss_network_dim="3")

    made = convert_lora(source, tmp_path / "there.safetensors", to=to, model=models["sdxl"][0])
    convert_lora(made.path, tmp_path / "back.safetensors", to="kohya", model=models["sdxl"][0])

    assert made.layers["clip"] > 20
    assert_same_bits(load_file(tmp_path / "back.safetensors"), spelt)
    begins = {"kohya": "lora_te2_", "diffusers": "text_encoder_2.", "diffusers-old": "text_encoder_2."}
    begins["comfyui"] = "text_encoders.clip_g.transformer."
    count = sum(key.startswith(begins[to]) for key in load_file(made.path) if not key.endswith("alpha"))
    assert count == sum(key.startswith("lora_te2_") for key in spelt if not key.endswith("alpha"))


def test_projections_with_nothing_in_common_add_up_their_ranks(models: dict[str, list[Path]], tmp_path: Path) -> None:
    source = write(tmp_path, "hunyuan_dit", "diffusers")
    parts = {
        name: pair for name, pair in some("hunyuan_dit", "diffusers").items() if name.startswith("blocks.0.attn1.to_")
    }

    convert_lora(source, tmp_path / "k.safetensors", to="kohya", model=models["hunyuan_dit"][0])

    state = load_file(tmp_path / "k.safetensors")
    name = "lora_unet_blocks_0_attn1_Wqkv"
    up, down = (state[f"{name}.lora_{way}.weight"] for way in ("up", "down"))
    expected = torch.cat(
        [parts[f"blocks.0.attn1.to_{part}"][0] @ parts[f"blocks.0.attn1.to_{part}"][1] for part in "qkv"]
    )
    assert up.shape[1] == 3 * files.RANK
    assert float(state[f"{name}.alpha"]) == 3 * ALPHA
    torch.testing.assert_close(up @ down, expected)


def test_projections_alone_stay_alone(models: dict[str, list[Path]], tmp_path: Path) -> None:
    only = {name: pair for name, pair in some("hunyuan_dit", "diffusers").items() if name.endswith("attn1.to_v")}
    source = write(tmp_path, "hunyuan_dit", "diffusers", only)

    for to, layers in (("kohya", "Wqkv"), ("diffsynth", "attn1.to_v")):
        path = tmp_path / f"{to}.safetensors"
        convert_lora(source, path, to=to, model=models["hunyuan_dit"][0])
        convert_lora(path, tmp_path / "back.safetensors", to="diffusers", model=models["hunyuan_dit"][0])
        assert all(layers in key for key in load_file(path))
        assert_same_bits(load_file(tmp_path / "back.safetensors"), read(source))


def test_scales_that_are_no_power_of_two_are_multiplied_in_without_loss(
    models: dict[str, list[Path]], tmp_path: Path
) -> None:
    layers = {name: (up.half(), down.half()) for name, (up, down) in some("sd15", "diffusers").items()}
    source = files.write(tmp_path / "source.safetensors", files.kohya(layers, alpha=1.0))

    convert_lora(source, tmp_path / "there.safetensors", to="diffsynth", model=models["sd15"][0])
    convert_lora(tmp_path / "there.safetensors", tmp_path / "back.safetensors", to="kohya", model=models["sd15"][0])

    ups = [tensor for key, tensor in load_file(tmp_path / "there.safetensors").items() if "lora_B" in key]
    assert {up.dtype for up in ups} == {torch.float32}
    back, expected = load_file(tmp_path / "back.safetensors"), load_file(source)
    assert_same_bits({key: tensor.to(expected[key].dtype) for key, tensor in back.items()}, expected)


def test_scales_that_cannot_be_one_are_an_error(models: dict[str, list[Path]], tmp_path: Path) -> None:
    layers = some("hunyuan_dit", "diffusers")
    names = [f"blocks.0.attn1.to_{part}" for part in "qv"]
    spelt: StateDict = {}
    for alpha, name in zip((1.0, 3.0), names, strict=True):
        spelt |= files.kohya({name: layers[name]}, alpha=alpha)
    source = files.write(tmp_path / "source.safetensors", spelt)

    message = r"attn1\.Wqkv.*cannot be written exactly: alpha over rank is 0\.333333 in one and 1 in another"
    with pytest.raises(InvalidRequest, match=message):
        convert_lora(source, tmp_path / "there.safetensors", to="kohya", model=models["hunyuan_dit"][0])
    assert not (tmp_path / "there.safetensors").exists()


@pytest.mark.parametrize(
    ("table", "networks"), [("sd15", {"text_encoder"}), ("sdxl", {"text_encoder", "text_encoder_2"})]
)
def test_all_names_of_kohya_are_those_of_diffusers(table: str, networks: set[str], tmp_path: Path) -> None:
    path = FACTS / f"{table}_lora_kohya_names.tsv"
    if not path.is_file():
        pytest.skip("the lists of published names are not beside this repository")
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    layers: Layers = {}
    for name, _, text in rows:
        rows_, columns, *kernel = map(int, text.split(","))
        layers[name] = torch.ones(rows_, 1, *(1 for _ in kernel)), torch.ones(1, columns, *kernel)
    source = files.write(tmp_path / "kohya.safetensors", files.kohya(layers, "", alpha=1.0))

    convert_lora(source, tmp_path / "diffusers.safetensors", to="diffusers")

    found = load_file(tmp_path / "diffusers.safetensors")
    assert found.keys() == {f"{name}.lora_{way}.weight" for _, name, _ in rows for way in "AB"}
    for kohya, diffusers, _ in rows:
        assert found[f"{diffusers}.lora_A.weight"].shape == layers[kohya][1].shape
    assert {key.split(".", 1)[0] for key in found} == {"unet", *networks}


def test_the_published_lora_of_hunyuan_dit_needs_no_model(tmp_path: Path) -> None:
    layers = {"blocks.39.attn1.Wqkv": (torch.ones(4224, 2), torch.ones(2, 1408))}
    source = files.write(tmp_path / "jade.safetensors", files.peft(layers))

    made = convert_lora(source, tmp_path / "there.safetensors", to="diffusers")

    names = {f"transformer.blocks.39.attn1.to_{part}.lora_{way}.weight" for part in "qkv" for way in "AB"}
    assert load_file(made.path).keys() == names
    assert made.layers == {"hunyuan_dit": 1}


def test_what_fits_two_releases_whose_names_differ_asks_which(tmp_path: Path) -> None:
    name = "text_model.encoder.layers.0.mlp.fc1"
    layers = {name: (torch.ones(3072, 1), torch.ones(1, 768))}
    source = files.write(tmp_path / "text.safetensors", files.peft(layers, "text_encoder."))

    with pytest.raises(InvalidRequest, match=r"fits Stable Diffusion 1\.5 and SDXL alike, which differ in kohya"):
        convert_lora(source, tmp_path / "there.safetensors", to="kohya")
    numbered = files.write(tmp_path / "numbered.safetensors", files.kohya(layers, "lora_te1_"))
    convert_lora(numbered, tmp_path / "kohya.safetensors", to="kohya")

    assert_same_bits(load_file(tmp_path / "kohya.safetensors"), load_file(numbered))


def test_what_cannot_be_converted_is_one_clear_error(models: dict[str, list[Path]], tmp_path: Path) -> None:
    source = write(tmp_path, "sd15", "kohya")
    model, output = models["sd15"][0], tmp_path / "there.safetensors"

    with pytest.raises(AdapterMismatch, match=r"Say with model= \(--model\) what it was made for"):
        convert_lora(source, output, to="diffusers")
    with pytest.raises(AdapterMismatch, match=r"(?s)does not fit hunyuan_dit of .*Name the model that it was made for"):
        convert_lora(source, output, to="diffusers", model=models["hunyuan_dit"][0])
    with pytest.raises(InvalidRequest, match="no format of LoRA called 'onnx'"):
        convert_lora(source, output, to="onnx", model=model)
    with pytest.raises(InvalidRequest, match="is the LoRA itself; give the result another name"):
        convert_lora(source, source, to="kohya", model=model)
    with pytest.raises(
        InvalidRequest, match=r"original \(HunyuanDiT's first web page\) has no names for changes of unet"
    ):
        convert_lora(source, output, to="original", model=model)
    odd = files.write(tmp_path / "odd.safetensors", load_file(source), diffsynth_lora_folded="[1]")
    with pytest.raises(CorruptCheckpoint, match="says nothing sensible under diffsynth_lora_folded"):
        convert_lora(odd, output, to="diffusers", model=model)
    assert not output.exists()

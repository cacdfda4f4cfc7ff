"""Images with LoRAs against the Diffusers library, which reads the same files through peft, on equal weights."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from diffsynth import ModelManager, SDImagePipeline, SDXLImagePipeline, convert_lora
from diffsynth.core.saving import to_layout
from diffsynth.types import StateDict
from examples.random_stable_diffusion import build
from tests.lora import files
from tests.lora.files import Layers
from tests.pipelines.unet.toy import SMALL, assert_same, draw, write_release

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from tests.pipelines.unet.diffusers_parts import generator, make_encoder, make_pipeline

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
KINDS: dict[str, tuple[Any, str]] = {
    "sd15": (SDImagePipeline, "StableDiffusionPipeline"),
    "sdxl": (SDXLImagePipeline, "StableDiffusionXLPipeline"),
}
PROMPT, SCALE = "a photo of a cat", 0.7


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFSYNTH_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in KINDS}
    return {name: write_release(folder, name) for name, folder in folders.items()}


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, releases: dict[str, Path]) -> Pair:
    """Our pipeline and that of Diffusers on equal weights; whoever attaches a LoRA takes it off again."""
    ours, theirs = KINDS[request.param]
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=[releases[request.param]])
    pipe = ours.from_model_manager(manager, "diffusers")
    return Pair(request.param, manager, pipe, make_pipeline(pipe, theirs, "ddim"))


class Pair(NamedTuple):
    """See the fixture ``pair``."""

    name: str
    manager: ModelManager
    ours: Any
    theirs: Any

    def drawn_by_theirs(self) -> Tensor:
        """Return the latents that Diffusers draws."""
        settings = {key: value for key, value in SMALL.items() if key != "seed"}
        images: Tensor = self.theirs(
            PROMPT, generator=generator(SMALL["seed"]), output_type="latent", **settings
        ).images
        return images


def layers_of(name: str, layout: str, family: str = "unet") -> list[Layers]:
    """Return random changes of every layer of the networks of a family, by their names in a layout."""
    states = [
        to_layout(module, part.family.layout(layout), part.config)
        for part, module in build(name)
        if part.family.name == family
    ]
    return [files.layers_of(state, seed, strength=0.3) for seed, state in enumerate(states)]


def kohya(name: str) -> StateDict:
    (unet,) = layers_of(name, "ldm" if name == "sdxl" else "diffusers")
    return files.kohya(attention_and_more(unet), "lora_unet_", alpha=2.0)


def attention_and_more(layers: Layers) -> Layers:
    """Return the layers inside transformers and residual blocks, which are those that trainers change."""
    words = ("transformer_blocks", "proj_in", "proj_out", "conv", "in_layers", "out_layers", "emb_layers", "skip")
    return {key: pair for key, pair in layers.items() if any(word in key for word in words)}


def diffusers(name: str) -> StateDict:
    (unet,) = layers_of(name, "diffusers")
    return files.peft(unet, "unet.")


def diffusers_old(name: str) -> StateDict:
    (unet,) = layers_of(name, "diffusers")
    spelt = files.processors({key: pair for key, pair in unet.items() if ".attn" in key})
    return spelt | files.dotted({key: pair for key, pair in unet.items() if ".ff." in key})


SPELLINGS = {"kohya": kohya, "diffusers": diffusers, "diffusers-old": diffusers_old}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_image_with_a_lora_is_that_of_diffusers(pair: Pair, spelling: str, tmp_path: Path) -> None:
    path = files.write(tmp_path / "lora.safetensors", SPELLINGS[spelling](pair.name))

    _, plain = draw(pair.ours, PROMPT, scheduler="ddim")
    lora = pair.manager.load_lora(path, SCALE)
    _, found = draw(pair.ours, PROMPT, scheduler="ddim")
    lora.detach()
    pair.theirs.load_lora_weights(tmp_path, weight_name=path.name, adapter_name="it")
    pair.theirs.set_adapters(["it"], [SCALE])
    expected = pair.drawn_by_theirs()
    pair.theirs.unload_lora_weights()

    assert float((found - plain).abs().max()) > 1e-2
    assert_same(found, expected)


@torch.no_grad()
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(("name", "number"), [("sd15", 0), ("sdxl", 0), ("sdxl", 1)])
def test_a_text_encoder_with_a_lora_is_that_of_peft(
    releases: dict[str, Path], name: str, number: int, rslora: bool, tmp_path: Path
) -> None:
    import peft

    ours, _ = KINDS[name]
    manager = ModelManager(torch_dtype=torch.float32, device="cpu", file_path_list=[releases[name]])
    encoder = ours.from_model_manager(manager).readers[number].encoder
    theirs: Any = make_encoder(encoder)
    targets = ["q_proj", "v_proj", "out_proj", "fc1"]
    settings = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, use_rslora=rslora, alpha_pattern={"fc1": 2})
    model = peft.get_peft_model(theirs, settings)
    random = torch.Generator().manual_seed(0)
    for parameter in (each for key, each in model.named_parameters() if "lora_" in key):
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=random)
    model.save_pretrained(tmp_path / "folder")
    tokens = torch.randint(0, encoder.config.vocab_size, (2, 77), generator=random)

    lora = manager.load_lora(tmp_path / "folder")
    found = encoder.text(input_ids=tokens).last_hidden_state

    expected = model(input_ids=tokens).last_hidden_state
    assert sum(lora.layers.values()) == 4 * encoder.config.num_layers
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-4
    lora.detach()
    assert float((encoder.text(input_ids=tokens).last_hidden_state - expected).abs().max()) > 1e-2


def mixed(name: str, layout: str) -> StateDict:
    """Return a LoRA of kohya whose layers have several ranks and alphas."""
    (unet,) = layers_of(name, layout)
    chosen = list({key: pair for key, pair in attention_and_more(unet).items() if "emb" not in key}.items())
    spelt: StateDict = {}
    for number, alpha in enumerate((1.0, 3.0, 2.0)):
        layers = {key: (up[:, : 3 - number], down[: 3 - number]) for key, (up, down) in chosen[number::3]}
        spelt |= files.kohya(layers, "lora_unet_", alpha)
    return spelt


@pytest.mark.parametrize("to", ["diffusers", "diffusers-old", "peft"])
@torch.no_grad()
def test_what_is_converted_means_to_diffusers_and_peft_what_the_source_means_to_us(
    pair: Pair, releases: dict[str, Path], to: str, tmp_path: Path
) -> None:
    import peft

    source = files.write(tmp_path / "s.safetensors", mixed(pair.name, "ldm" if pair.name == "sdxl" else "diffusers"))
    path = tmp_path / ("folder" if to == "peft" else "converted.safetensors")

    convert_lora(source, path, to=to, model=releases[pair.name])

    lora = pair.manager.load_lora(source)
    _, found = draw(pair.ours, PROMPT, scheduler="ddim")
    lora.detach()
    if to == "peft":
        before = pair.theirs.unet
        pair.theirs.unet = peft.PeftModel.from_pretrained(deepcopy(before), path).merge_and_unload()
        expected = pair.drawn_by_theirs()
        pair.theirs.unet = before
    else:
        pair.theirs.load_lora_weights(tmp_path, weight_name=path.name)
        expected = pair.drawn_by_theirs()
        pair.theirs.unload_lora_weights()
    assert_same(found, expected)

"""The models that can be asked for by name: one line per file, or per folder of files.

A line says which repositories have the file, its name there, and the folder it goes to below the folder of downloaded
models. Sizes and hashes are not written here: the hubs tell them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from diffsynth.errors import InvalidRequest, printable

SAFE = ".safetensors"
WEIGHTS = (SAFE, ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx")

PARTS = ("transformer", "text_encoder", "text_encoder_2", "vae", "scheduler", "tokenizer", "tokenizer_2")
PIPELINE = ("model_index.json", *(f"{part}/*" for part in PARTS))

Repositories = Mapping[str, str]  # hub → repository


@dataclass(frozen=True)
class Line:
    """A file of a model, or several by a pattern such as ``vae/*``.

    Attributes:
        repositories: hub → the repository that has it there; none if it comes with the package.
        path: its name in the repository.
        folder: where it goes, below the folder of downloaded models; sub-folders of ``path`` are kept, unless ``flat``.
        loads: whether ``load_models`` wants it; vocabularies are found by the text encoders themselves.
        flat: whether sub-folders of ``path`` are not kept.
        prefer: a suffix; where a folder has files that end so, weights in other formats are left out.
        revision: a branch, tag or commit; None is the newest.
    """

    repositories: Repositories
    path: str
    folder: str
    loads: bool = True
    flat: bool = False
    prefer: str = ""
    revision: str | None = None

    @property
    def place(self) -> str:
        """Where it goes, below the folder of downloaded models."""
        return f"{self.folder}/{self.inside(self.path)}"

    def inside(self, path: str) -> str:
        """Return where a file of the repository goes, below ``folder``."""
        return path.rpartition("/")[2] if self.flat else path

    @property
    def is_pattern(self) -> bool:
        """Whether the listing of the repository decides which files are meant."""
        return any(char in self.path for char in "*?[")


@dataclass(frozen=True)
class CatalogModel:
    """A model and its files.

    Attributes:
        about: what it is, in a few words.
        lines: its files, in the order that ``load_models`` wants them.
        as_folder: a folder that ``load_models`` gets in place of the single files.
        bundled: whether it comes with the package, so that no hub is asked for it.
    """

    about: str
    lines: tuple[Line, ...]
    as_folder: str | None = None
    bundled: bool = False

    @property
    def weights(self) -> tuple[str, ...]:
        """The places of what ``load_models`` wants, below the folder of downloaded models."""
        return tuple(line.place for line in self.lines if line.loads)

    @property
    def vocabularies(self) -> tuple[str, ...]:
        """The places of the other files."""
        return tuple(line.place for line in self.lines if not line.loads)


def same(name: str) -> Repositories:
    """Return a repository that is called the same on both hubs; one that lacks it is passed over."""
    return {"ModelScope": name, "HuggingFace": name}


def _published(folder: str, main: Repositories, denoiser: Repositories | None = None) -> tuple[Line, ...]:
    """The files of one HunyuanDiT as Tencent published it, the denoiser from a repository of its own if need be."""
    dit = (
        Line(main, "t2i/model/pytorch_model_ema.pt", folder)
        if denoiser is None
        else Line(denoiser, "pytorch_model_distill.pt", f"{folder}/t2i/model")
    )
    return (
        Line(main, "t2i/clip_text_encoder/pytorch_model.bin", folder),
        Line(main, "t2i/mt5/pytorch_model.bin", folder),
        dit,
        Line(main, "t2i/sdxl-vae-fp16-fix/diffusion_pytorch_model.bin", folder),
        Line(main, "t2i/tokenizer/vocab.txt", folder, loads=False),
        Line(main, "t2i/mt5/spiece.model", folder, loads=False),
    )


def _diffusers(name: str, paths: Sequence[str] = PIPELINE) -> CatalogModel:
    """A repository in the layout of Diffusers; which files its folders hold, its listing says."""
    lines = tuple(Line(same(f"Tencent-Hunyuan/{name}"), path, name, prefer=SAFE) for path in paths)
    return CatalogModel("in the layout of Diffusers", lines, as_folder=name)


def _bundled(name: str, about: str, weights: Sequence[str], vocabularies: Sequence[str] = ()) -> CatalogModel:
    """A model of HunyuanDiT's kind that comes with the package, in the published folders."""
    lines = (
        *(Line({}, f"t2i/{path}{SAFE}", name) for path in weights),
        *(Line({}, f"t2i/{path}", name, loads=False) for path in vocabularies),
    )
    return CatalogModel(about, lines, bundled=True)


def on_both(model_scope: str, hugging_face: str) -> Repositories:
    """Return a repository that has a name of its own on each hub."""
    return {"ModelScope": model_scope, "HuggingFace": hugging_face}


def _whole(about: str, repositories: Repositories, path: str, folder: str) -> CatalogModel:
    """A Stable Diffusion or SDXL in one file, with the vocabulary that its text encoders need."""
    vocabulary = (Line(CLIP, name, f"{folder}/tokenizer", loads=False) for name in ("vocab.json", "merges.txt"))
    return CatalogModel(about, (Line(repositories, path, folder), *vocabulary))


def _controlnet(about: str, repositories: Repositories, path: str, folder: str, *annotators: str) -> CatalogModel:
    """A ControlNet, with the networks that make its hints out of pictures."""
    makers = (Line(ANNOTATORS, name, "Annotators", loads=False) for name in annotators)
    return CatalogModel(about, (Line(repositories, path, folder), *makers))


def _ip_adapter(about: str, inside: str, name: str, folder: str) -> CatalogModel:
    """An adapter that takes pictures as prompts, with the encoder that reads them."""
    return CatalogModel(
        about,
        (
            Line(SD_IP_ADAPTER, f"{inside}/image_encoder/model{SAFE}", f"{folder}/image_encoder", flat=True),
            Line(SD_IP_ADAPTER, f"{inside}/{name}", folder, flat=True),
        ),
    )


V1_0 = on_both("modelscope/HunyuanDiT", "Tencent-Hunyuan/HunyuanDiT")
V1_1 = same("Tencent-Hunyuan/HunyuanDiT-v1.1")
V1_2 = same("Tencent-Hunyuan/HunyuanDiT-v1.2")
LORA = same("Tencent-Hunyuan/HYDiT-LoRA")
IP_ADAPTER = same("Tencent-Hunyuan/IP-Adapter")
VAE_FIX = on_both("AI-ModelScope/sdxl-vae-fp16-fix", "madebyollin/sdxl-vae-fp16-fix")
CLIP = on_both("AI-ModelScope/clip-vit-large-patch14", "openai/clip-vit-large-patch14")
SD_CONTROLNET = on_both("AI-ModelScope/ControlNet-v1-1", "lllyasviel/ControlNet-v1-1")
UNION_CONTROLNET = on_both("AI-ModelScope/controlnet-union-sdxl-1.0", "xinsir/controlnet-union-sdxl-1.0")
ANNOTATORS = on_both("sd_lora/Annotators", "lllyasviel/Annotators")
SD_IP_ADAPTER = on_both("AI-ModelScope/IP-Adapter", "h94/IP-Adapter")

CATALOG: Mapping[str, CatalogModel] = MappingProxyType(
    {
        "HunyuanDiT-Emoji": _bundled(
            "HunyuanDiT-Emoji",
            "small, draws emoji; comes with the package",
            (
                "clip_text_encoder/pytorch_model",
                "mt5/pytorch_model",
                "model/pytorch_model_ema",
                "sdxl-vae-fp16-fix/diffusion_pytorch_model",
            ),
            ("tokenizer/vocab.txt", "mt5/spiece.model"),
        ),
        "HunyuanDiT-Emoji-ControlNet": _bundled(
            "HunyuanDiT-Emoji-ControlNet",
            "ControlNet of HunyuanDiT-Emoji: canny; comes with the package",
            ("controlnet/pytorch_model_canny",),
        ),
        "HunyuanDiT": CatalogModel("version 1.0", _published("HunyuanDiT", V1_0)),
        "HunyuanDiT-v1.1": CatalogModel("version 1.1", _published("HunyuanDiT-v1.1", V1_1)),
        "HunyuanDiT-v1.2": CatalogModel("version 1.2", _published("HunyuanDiT-v1.2", V1_2)),
        "HunyuanDiT-Distilled": CatalogModel(
            "version 1.0, for fewer steps", _published("HunyuanDiT", V1_0, same("Tencent-Hunyuan/Distillation"))
        ),
        "HunyuanDiT-v1.1-Distilled": CatalogModel(
            "version 1.1, for fewer steps",
            _published("HunyuanDiT-v1.1", V1_1, same("Tencent-Hunyuan/Distillation-v1.1")),
        ),
        "HunyuanDiT-v1.2-Distilled": CatalogModel(
            "version 1.2, for fewer steps",
            _published("HunyuanDiT-v1.2", V1_2, same("Tencent-Hunyuan/Distillation-v1.2")),
        ),
        **{
            f"HunyuanDiT-{version}-ControlNet-{kind.title()}": CatalogModel(
                f"ControlNet of version {version[1:]}: {kind}",
                (
                    Line(
                        same(f"Tencent-Hunyuan/HYDiT-ControlNet-{version}"),
                        f"pytorch_model_{kind}_distill.pt",
                        f"HunyuanDiT-{version}/t2i/controlnet",
                    ),
                ),
            )
            for version in ("v1.1", "v1.2")
            for kind in ("canny", "depth", "pose")
        },
        **{
            f"HunyuanDiT-LoRA-{style.title()}": CatalogModel(
                f"LoRA: {style}", (Line(LORA, f"{style}/*", "HunyuanDiT-LoRA"),), as_folder=f"HunyuanDiT-LoRA/{style}"
            )
            for style in ("porcelain", "jade")
        },
        **{
            f"HunyuanDiT-{version}-ControlNet-Diffusers-{kind}": _diffusers(
                f"HunyuanDiT-{version}-ControlNet-Diffusers-{kind}", ("config.json", "diffusion_pytorch_model*")
            )
            for version in ("v1.1", "v1.2")
            for kind in ("Canny", "Depth", "Pose")
        },
        "HunyuanDiT-IP-Adapter": CatalogModel(
            "pictures as prompts",
            (
                Line(IP_ADAPTER, "ipa.pt", "HunyuanDiT-IP-Adapter"),
                Line(IP_ADAPTER, "clip_img_encoder.pt", "HunyuanDiT-IP-Adapter"),
            ),
        ),
        "SDXL-vae-fp16-fix": CatalogModel(
            "the autoencoder of SDXL, safe in half precision",
            (Line(VAE_FIX, "diffusion_pytorch_model.safetensors", "sdxl-vae-fp16-fix"),),
        ),
        "HunyuanDiT-Diffusers": _diffusers("HunyuanDiT-Diffusers"),
        "HunyuanDiT-v1.1-Diffusers": _diffusers("HunyuanDiT-v1.1-Diffusers"),
        "HunyuanDiT-v1.1-Diffusers-Distilled": _diffusers("HunyuanDiT-v1.1-Diffusers-Distilled"),
        "HunyuanDiT-v1.2-Diffusers": _diffusers("HunyuanDiT-v1.2-Diffusers"),
        "HunyuanDiT-v1.2-Diffusers-Distilled": _diffusers("HunyuanDiT-v1.2-Diffusers-Distilled"),
        "StableDiffusion_v15": _whole(
            "Stable Diffusion 1.5",
            on_both("AI-ModelScope/stable-diffusion-v1-5", "benjamin-paine/stable-diffusion-v1-5"),
            f"v1-5-pruned-emaonly{SAFE}",
            "stable_diffusion",
        ),
        "DreamShaper_8": _whole(
            "Stable Diffusion 1.5, fine-tuned",
            on_both("sd_lora/dreamshaper_8", "Yntec/Dreamshaper8"),
            f"dreamshaper_8{SAFE}",
            "stable_diffusion",
        ),
        "AingDiffusion_v12": _whole(
            "Stable Diffusion 1.5, fine-tuned",
            {"ModelScope": "sd_lora/aingdiffusion_v12"},
            f"aingdiffusion_v12{SAFE}",
            "stable_diffusion",
        ),
        "Flat2DAnimerge_v45Sharp": _whole(
            "Stable Diffusion 1.5, fine-tuned",
            {"ModelScope": "sd_lora/Flat-2D-Animerge"},
            f"flat2DAnimerge_v45Sharp{SAFE}",
            "stable_diffusion",
        ),
        "StableDiffusionXL_v1": _whole(
            "SDXL, the base network",
            on_both("AI-ModelScope/stable-diffusion-xl-base-1.0", "stabilityai/stable-diffusion-xl-base-1.0"),
            f"sd_xl_base_1.0{SAFE}",
            "stable_diffusion_xl",
        ),
        "BluePencilXL_v200": _whole(
            "SDXL, fine-tuned",
            on_both("sd_lora/bluePencilXL_v200", "frankjoshua/bluePencilXL_v200"),
            f"bluePencilXL_v200{SAFE}",
            "stable_diffusion_xl",
        ),
        "StableDiffusionXL_Turbo": _whole(
            "SDXL, for one to four steps",
            on_both("AI-ModelScope/sdxl-turbo", "stabilityai/sdxl-turbo"),
            f"sd_xl_turbo_1.0_fp16{SAFE}",
            "stable_diffusion_xl_turbo",
        ),
        "TextualInversion_VeryBadImageNegative_v1.3": CatalogModel(
            "a word for negative prompts of Stable Diffusion 1.5",
            (
                Line(
                    on_both("sd_lora/verybadimagenegative_v1.3", "gemasai/verybadimagenegative_v1.3"),
                    "verybadimagenegative_v1.3.pt",
                    "textual_inversion",
                ),
            ),
        ),
        "SDXL_lora_zyd232_ChineseInkStyle_SDXL_v1_0": CatalogModel(
            "LoRA for SDXL: ink painting",
            (
                Line(
                    {"ModelScope": "sd_lora/zyd232_ChineseInkStyle_SDXL_v1_0"},
                    f"zyd232_ChineseInkStyle_SDXL_v1_0{SAFE}",
                    "lora",
                ),
            ),
        ),
        **{
            f"ControlNet_{name}": _controlnet(
                f"ControlNet for Stable Diffusion 1.5: {name.rpartition('_')[2]}",
                SD_CONTROLNET,
                f"control_{name}.pth",
                "ControlNet",
                *annotators,
            )
            for name, annotators in {
                "v11f1p_sd15_depth": ("dpt_hybrid-midas-501f0c75.pt",),
                "v11p_sd15_softedge": ("ControlNetHED.pth",),
                "v11f1e_sd15_tile": (),
                "v11p_sd15_lineart": ("sk_model.pth", "sk_model2.pth"),
            }.items()
        },
        "ControlNet_union_sdxl_promax": _controlnet(
            "ControlNet for SDXL: eight kinds of hints",
            UNION_CONTROLNET,
            f"diffusion_pytorch_model_promax{SAFE}",
            "ControlNet/controlnet_union",
            "dpt_hybrid-midas-501f0c75.pt",
        ),
        "IP-Adapter-SD": _ip_adapter(
            "pictures as prompts of Stable Diffusion 1.5",
            "models",
            "ip-adapter_sd15.bin",
            "IpAdapter/stable_diffusion",
        ),
        "IP-Adapter-SDXL": _ip_adapter(
            "pictures as prompts of SDXL", "sdxl_models", "ip-adapter_sdxl.bin", "IpAdapter/stable_diffusion_xl"
        ),
    }
)


def model_called(name: str) -> CatalogModel:
    """Return a model of the catalogue.

    Raises:
        InvalidRequest: there is none of this name; the message has the nearest.
    """
    if name in CATALOG:
        return CATALOG[name]
    by_lower = {known.lower(): known for known in CATALOG}
    close = get_close_matches(name.lower(), by_lower, n=3, cutoff=0.4)
    near = [by_lower[each] for each in close] or ["HunyuanDiT"]
    raise InvalidRequest(
        f"there is no model called {printable(name)!r}. Known are: {', '.join(near)}; `diffsynth list` shows all."
    )

"""Which networks a command draws with: options that ``generate`` and ``batch`` share, and the pipeline they mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffsynth.cli.again import check_adapters, compare_files, inversions_of, load_again, vocabulary_of
from diffsynth.cli.networks import (
    T5,
    Clip,
    Clip2,
    Controlnets,
    Denoiser,
    ImageEncoderName,
    Inversions,
    IPAdapterName,
    Lora,
    LoraPartly,
    Loras,
    Prediction,
    Refiner,
    RefinerName,
    Vae,
    ZeroTerminalSnr,
    chosen_networks,
    chosen_refiner,
    index_or_name,
    inversions_named,
    loras_named,
    loras_of,
)
from diffsynth.cli.options import Dtype, Kinds, dtype_named, expanded
from diffsynth.cli.pipelines import USUAL, Kind, kind_named, kind_of
from diffsynth.errors import InvalidRequest

if TYPE_CHECKING:
    from diffsynth.manager import ModelManager
    from diffsynth.pipelines.request import ImageRequest


@dataclass(frozen=True)
class Choice:
    """A pipeline to draw with; nothing is loaded yet.

    Args:
        kind: which pipeline.
        paths: of checkpoints.
        kinds: what ``--as`` says of them.
        conventions: by name.
        options: further arguments of ``from_model_manager``.
        inversions: textual inversions, each with its word.
        loras: to attach.
        device: to load to.
        dtype: of the weights.
        recipe: of an image that is drawn again; empty if there is none.
    """

    kind: Kind
    paths: tuple[Path, ...]
    kinds: list[str] | None
    conventions: str
    options: dict[str, Any]
    inversions: list[tuple[Path, str | None]]
    loras: list[Lora]
    device: str | None
    dtype: str | None
    recipe: dict[str, Any]

    def check(self, settings: Sequence[str]) -> None:
        """Raise InvalidRequest if an option or a setting is not one of the pipeline."""
        self.kind.check_options(self.options, self.inversions, settings)

    def check_request(self, request: ImageRequest) -> None:
        """Raise InvalidRequest for what can be known to be wrong with a request before any network is loaded."""
        from diffsynth.pipelines import hires
        from diffsynth.schedulers.catalog import make_scheduler

        chosen, options = self.kind.conventions(self.conventions), self.options
        name = request.scheduler or chosen.scheduler
        beta_end, prediction = options["beta_end"], options["prediction"]
        scheduler = make_scheduler(
            chosen.samplers.get(name, name),
            beta_start=0.00085,  # any schedule does, unless one is asked for
            beta_end=0.012 if beta_end is None else beta_end,
            prediction=prediction or "velocity",
            spacing=request.spacing,
            zero_terminal_snr=bool(options["zero_terminal_snr"]),
        )
        steps = request.num_inference_steps or chosen.num_inference_steps
        scheduler.start(steps, denoising_strength=request.denoising_strength, draw_noise=hires.no_noise)
        hires.check(replace(request, num_inference_steps=steps), scheduler)

    def pipeline(self) -> Any:
        """Load everything and return the pipeline.

        Raises:
            CheckpointError: a file cannot be used.
            ModelNotLoaded: a network is missing.
            InvalidRequest: networks do not fit.
        """
        manager = self._load()
        found = {role: vocabulary_of(self.recipe, role) for role in ("clip_tokenizer", "t5_tokenizer")}
        options = {**self.options, **{role: self.options[role] or path for role, path in found.items()}}
        pipe = self.kind.make(manager, self.conventions, options, self.inversions)
        pipe.latent_scale = self.recipe.get("latent_scale", pipe.latent_scale)
        return pipe

    def _load(self) -> ModelManager:
        """Load the files that were named, those of a recipe, or those of the catalogue."""
        import torch

        from diffsynth.hub.download import download_models
        from diffsynth.manager import ModelManager

        wanted = dtype_named(self.dtype)
        manager = ModelManager(device=self.device)
        manager.torch_dtype = wanted or (torch.float32 if manager.device.type == "cpu" else torch.float16)
        if self.recipe and not self.paths:
            if self.kinds:
                raise InvalidRequest("--as says what a file holds; with --like, name the files with --model too.")
            load_again(manager, self.recipe, self.dtype)
        else:
            for path, kind in expanded(self.paths or download_models(["HunyuanDiT"]), self.kinds):
                manager.load_model(path, kind=kind)
        for lora in self.loras:
            lora.load(manager)
        compare_files(manager, self.recipe)
        return manager


def choose(
    recipe: dict[str, Any],
    like: Path | None,
    files: Sequence[Path],
    *,
    model: Annotated[list[Path] | None, typer.Option(help="Checkpoint file or folder; repeat for each.")] = None,
    conventions: Annotated[str | None, typer.Option(help="diffsynth, diffusers, original, sgm or turbo.")] = None,
    beta_end: Annotated[float | None, typer.Option(help="Last beta of the noise schedule.")] = None,
    denoiser: Denoiser = None,
    clip: Clip = None,
    clip_2: Clip2 = None,
    t5: T5 = None,
    vae: Vae = None,
    controlnets: Controlnets = None,
    refiner: Refiner = None,
    refiner_name: RefinerName = None,
    ip_adapter: IPAdapterName = None,
    image_encoder: ImageEncoderName = None,
    prediction: Prediction = None,
    zero_terminal_snr: ZeroTerminalSnr = None,
    textual_inversion: Inversions = None,
    lora: Loras = None,
    lora_partly: LoraPartly = False,
    clip_tokenizer: Annotated[Path | None, typer.Option(help="vocab.txt, vocab.json, or its folder.")] = None,
    t5_tokenizer: Annotated[Path | None, typer.Option(help="spiece.model or its folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, mps, cpu; the best there is by default.")] = None,
    dtype: Dtype = None,
    kinds: Kinds = None,
) -> Choice:
    """Return what options mean; each keyword is one, and ``with_choice`` gives them to a command.

    Args:
        recipe: of an image that is drawn again; empty if there is none.
        like: its file.
        files: further checkpoints.
        **options: as the command line has them.

    Raises:
        InvalidRequest: options contradict one another, or the files hold several pipelines.
        CheckpointError: a file that is named is none.
    """
    paths = (*(model or []), *files)
    named = chosen_networks({"denoiser": denoiser, "clip": clip, "clip_2": clip_2, "t5": t5, "vae": vae})
    named |= chosen_networks({"ip_adapter": ip_adapter, "image_encoder": image_encoder})
    if recipe:
        kind = kind_named(recipe["pipeline"], like)
    else:
        kind = kind_of(expanded(paths, kinds), named["denoiser"]) if paths else USUAL
    wanted = chosen_refiner(refiner, refiner_name)
    ends = recipe.get("zero_terminal_snr") if zero_terminal_snr is None else zero_terminal_snr
    options: dict[str, Any] = {
        **named,
        "controlnets": [index_or_name(name) for name in controlnets] if controlnets else None,
        "beta_end": recipe.get("beta_end") if beta_end is None else beta_end,
        "prediction": prediction or recipe.get("prediction"),
        "refiner": recipe.get("refined") if wanted is None else wanted,
        "zero_terminal_snr": ends,
        "clip_tokenizer": clip_tokenizer,
        "t5_tokenizer": t5_tokenizer,
    }
    if lora_partly and not lora:
        raise InvalidRequest("--lora-partly goes with --lora.")
    if not lora:
        check_adapters(recipe)
    return Choice(
        kind=kind,
        paths=paths,
        kinds=kinds,
        conventions=conventions or recipe.get("conventions", "diffsynth"),
        options=options,
        inversions=inversions_named(textual_inversion) if textual_inversion else inversions_of(recipe),
        loras=loras_named(lora, strict=not lora_partly) if lora else loras_of(recipe),
        device=device,
        dtype=dtype,
        recipe=recipe,
    )


_PARAMETERS = signature(choose, eval_str=True).parameters
OPTIONS = {name: each for name, each in _PARAMETERS.items() if each.kind is Parameter.KEYWORD_ONLY}


def with_options(command: Callable[..., Any], options: Sequence[Parameter]) -> None:
    """Give a command, which has ``**keywords``, further options in their place."""
    own = signature(command, eval_str=True)
    fixed = [each for each in own.parameters.values() if each.kind is not Parameter.VAR_KEYWORD]
    keyword_only = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in options]
    command.__signature__ = own.replace(parameters=[*fixed, *keyword_only])  # type: ignore[attr-defined]

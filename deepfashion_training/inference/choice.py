"""Which models a command draws with: flags and the LoRA's own metadata, checked before anything large is loaded."""

# Nothing heavy is imported up here, so that --help answers at once.
from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfashion_training.cli import number

if TYPE_CHECKING:
    from deepfashion_training.inference.dress import DrawingSettings
    from deepfashion_training.models.fill import FillModel, Recipe
    from deepfashion_training.models.lora_files import LoraFile

#: What the small embedded model is trained with, see presets/embedded.yaml.
_EMBEDDED = {"height": 128, "width": 96, "max_sequence_length": 8, "guidance_scale": 1.0, "num_inference_steps": 1}


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that choose the models."""
    add = parser.add_argument_group("models").add_argument
    add("--lora", metavar="LORA", help="output folder of a training, LoRA file, or Hub id; without one the bare base")
    add("--lora_scale", type=number(float), default=1.0, metavar="X", help="multiplies what the LoRA changes (1)")
    add("--base", metavar="BASE", help="transformer, folder or Hub id (default: the one that the LoRA was trained on)")
    add("--pipeline", metavar="P", help="VAE, text encoders and scheduler, folder or Hub id (default: the LoRA's)")
    add("--embedded", action="store_true", help="the small model that comes with the project: no network, no GPU")
    add(
        "--quantize_base",
        choices=("nf4", "int8", "fp8"),
        help="transformer in 4 bits a weight, for 24 GB and less (bitsandbytes, CUDA), or in 8 (torchao)",
    )
    add("--offload", action="store_true", help="transformer in main memory, block by block to the GPU, for 24 GB")


def add_drawing_flags(parser: argparse.ArgumentParser, *, guidance: bool = True) -> None:
    """Flags that say how a picture is drawn; ``guidance`` off leaves out the one that a sweep has several values of."""
    add = parser.add_argument_group("drawing").add_argument
    add("--num_inference_steps", type=number(int, 1, 1000), metavar="N", help="denoising steps (default: the LoRA's)")
    if guidance:
        add("--guidance_scale", type=number(float, 0), metavar="X", help="embedded guidance (default: the LoRA's)")
    side: dict[str, Any] = {"type": number(int, 16, 4096, step=16), "metavar": "PIXELS"}
    add("--height", **side, help="height that the model draws at, a multiple of 16 (default: the LoRA's)")
    add("--width", **side, help="width of one half of the pair, a multiple of 16 (default: the LoRA's)")
    add("--resize_mode", choices=("pad", "stretch"), help="how photos fit that size (default: as the LoRA was trained)")
    add("--prompt", help="prompt (default: the LoRA's)")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="seed of the noise (0)")


@dataclass(frozen=True)
class ModelChoice:
    """Models that are there and fit one another, yet to be loaded, and how to draw with them."""

    recipe: Recipe
    lora: LoraFile | None
    lora_scale: float
    quantize_base: Any
    offload: bool
    notes: tuple[str, ...]

    def load(self, prompts: Iterable[str], *, device: Any = None, **others: LoraFile) -> FillModel:
        """The model, with the LoRA under the name ``lora`` and ``others`` under theirs; see ``FillModel``."""
        from deepfashion_training.models.fill import FillModel

        loras = others | ({} if self.lora is None else {"lora": self.lora})
        how = {"quantize_base": self.quantize_base, "offload": self.offload, "device": device}
        return FillModel(self.recipe, prompts, loras=loras, **how)

    def drawing(self, **more: Any) -> DrawingSettings:
        """Settings that the recipe gives, with the LoRA at its scale; ``more`` overrides fields by name."""
        from deepfashion_training.inference.dress import DrawingSettings

        worn = {"lora": None if self.lora is None else "lora", "lora_scale": self.lora_scale}
        recipe = self.recipe
        how = {"size": (recipe.height, recipe.width), "num_inference_steps": recipe.num_inference_steps}
        how |= {"guidance_scale": recipe.guidance_scale, "resize_mode": recipe.resize_mode}
        return DrawingSettings(**{**how, **worn, **more})

    def described(self) -> dict[str, Any]:
        """What a record of the pictures has to say about the models, ready for JSON."""
        import torch

        from deepfashion_training.models.fill import precision_of

        drawn_on = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return {
            "lora": None if self.lora is None else str(self.lora.path),
            "lora_sha256": None if self.lora is None else self.lora.sha256,
            "lora_scale": None if self.lora is None else self.lora_scale,
            "transformer": _full_name(self.recipe.transformer),
            "pipeline": _full_name(self.recipe.pipeline),
            "quantize_base": self.quantize_base,
            "precision": "bf16" if precision_of(self.recipe.transformer, drawn_on) == torch.bfloat16 else "fp32",
            "prompt": self.recipe.prompt,
            "use_captions": self.recipe.use_captions,
            "colours": "sRGB",  # whatever profiles the pictures brought
        }


def choose(args: argparse.Namespace) -> ModelChoice:
    """What the flags of ``add_model_flags`` and ``add_drawing_flags`` ask for.

    Raises ``ValueError``, one line, for a LoRA or base that cannot be had, that do not fit one another, or that this
    machine cannot run. ``notes`` of the result say what a user may not have meant.
    """
    from deepfashion_training.models import fill, lora_files
    from deepfashion_training.models.access import USING_FLAGS, check_models

    fill.check_means(args.quantize_base, args.offload)
    if args.lora is None and args.lora_scale != 1:
        raise ValueError(f"--lora_scale {args.lora_scale:g} scales nothing: name a LoRA with --lora, or leave it out")
    lora = None
    if args.lora is not None:
        lora = lora_files.read_lora(lora_files.find_lora(args.lora), assume_alpha=True)
    trained = fill.Recipe() if lora is None else fill.Recipe.of(lora)
    recipe = dataclasses.replace(trained, **_asked(args, lora))
    _check_there(args, lora, recipe)
    _check_machine(recipe.transformer)
    check_models(recipe.pipeline, recipe.transformer, flags=USING_FLAGS)
    if lora is not None:
        lora_files.check_fits(lora, lora_files.find_transformer(recipe.transformer, weights=False))
    notes = [] if lora is None else _notes(lora, trained, recipe)
    return ModelChoice(recipe, lora, args.lora_scale, args.quantize_base, args.offload, tuple(notes))


def _asked(args: argparse.Namespace, lora: LoraFile | None) -> dict[str, Any]:
    """Fields of the recipe that the flags change."""
    from deepfashion_training.embedded import TINY_FLUX_FILL

    asked: dict[str, Any] = {}
    if args.embedded:
        asked |= dict.fromkeys(("pipeline", "transformer"), str(TINY_FLUX_FILL))
        said = {} if lora is None else lora.metadata
        asked |= {name: value for name, value in _EMBEDDED.items() if name not in said}
    if args.base is not None:
        asked["transformer"] = args.base
        if (Path(args.base) / "model_index.json").is_file():  # a whole pipeline
            asked["pipeline"] = args.base
    names = ("pipeline", "height", "width", "prompt", "guidance_scale", "resize_mode")
    given = {name: getattr(args, name, None) for name in names} | {"num_inference_steps": args.num_inference_steps}
    return asked | {name: value for name, value in given.items() if value is not None}


def _full_name(name: str) -> str:
    """A folder by its full path, a Hub id as it is: a record must not depend on where a command is started."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _is_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or name.count("/") != 1


def _check_there(args: argparse.Namespace, lora: LoraFile | None, recipe: Recipe) -> None:
    """Raise ``ValueError`` for a folder that is gone and that the LoRA names, not a flag."""
    if lora is None:
        return
    for flag, name, key in (("base", recipe.transformer, "transformer"), ("pipeline", recipe.pipeline, "base_model")):
        if (
            getattr(args, flag) is None
            and name == lora.metadata.get(key)
            and _is_path(name)
            and not Path(name).is_dir()
        ):
            part = "transformer" if flag == "base" else "VAE and text encoders"
            raise ValueError(
                f"--lora {lora.path} was trained with the {part} in {name}, which is not here: name it with --{flag}, "
                "or --embedded for the small model that comes with the project"
            )


def _check_machine(transformer: str) -> None:
    import torch

    if not torch.cuda.is_available() and not _is_path(transformer) and not Path(transformer).is_dir():
        raise ValueError("no CUDA GPU is visible, and a 12B model needs one: add --embedded to try it on this machine")


def _notes(lora: LoraFile, trained: Recipe, recipe: Recipe) -> list[str]:
    """What differs from the training, in lines for people."""
    from deepfashion_training.models.fill import same_model

    said = lora.metadata
    facts = {"base": "transformer", "height": "height", "width": "width", "prompt": "prompt"}
    facts |= {"guidance": "guidance_scale", "number of steps": "num_inference_steps", "resize mode": "resize_mode"}
    silent = [fact for fact, key in facts.items() if key not in said]
    notes = []
    if silent:
        listed = " and ".join(filter(None, [", ".join(silent[:-1]), silent[-1]]))
        notes.append(f"the LoRA does not say which {listed} it was trained with: the usual ones, or what the flags say")
    if "transformer" in said and not same_model(trained.transformer, recipe.transformer):
        notes.append(f"the LoRA was trained on {trained.transformer}, and is worn by {recipe.transformer} here")
    if {"height", "width"} <= set(said) and (trained.height, trained.width) != (recipe.height, recipe.width):
        notes.append(
            f"the LoRA was trained at {trained.height}x{trained.width} (height x width), and draws "
            f"{recipe.height}x{recipe.width} here"
        )
    for name, what in {"num_inference_steps": "steps", "resize_mode": "resize mode"}.items():
        before, now = (getattr(which, name) for which in (trained, recipe))
        if name in said and before != now:
            notes.append(f"the LoRA was trained and judged with {what} {before}, and draws with {now} here")
    if "prompt" in said and trained.prompt != recipe.prompt:
        notes.append("the LoRA was trained with another prompt")
    return notes

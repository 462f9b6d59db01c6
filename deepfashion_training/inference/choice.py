"""The models that a command draws with, from its flags and the LoRA's metadata, checked before they are loaded."""

# Nothing heavy is imported up here, so that --help answers at once.
from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfashion_training.cli import load_preset, number
from training_run.flags import AMOUNT, DRAWN_SIDE, QUANTIZED_BY, STEPS

if TYPE_CHECKING:
    from deepfashion_training.inference.dress import DrawingSettings
    from deepfashion_training.models.fill import FillModel, Recipe
    from training_run.lora_formats import LoraFile

#: What a LoRA's metadata should say.
_TRAINED_WITH = ("transformer", "height", "width", "prompt", "guidance_scale", "num_inference_steps", "resize_mode")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that choose the models."""
    add = parser.add_argument_group("models").add_argument
    add("--lora", metavar="LORA", help="folder or file of any usual format, or Hub id; without one the bare base")
    add("--lora_scale", type=number(float), default=1.0, metavar="X", help="multiplies what the LoRA changes")
    add("--base", metavar="BASE", help="transformer, folder or Hub id (default: the one that the LoRA was trained on)")
    add("--pipeline", metavar="P", help="VAE, text encoders and scheduler, folder or Hub id (default: the LoRA's)")
    add("--embedded", action="store_true", help="the small model that comes with the project: no network, no GPU")
    add(
        "--quantize_base",
        choices=list(QUANTIZED_BY),
        help="transformer in 4 bits a weight, for 24 GB and less (bitsandbytes, CUDA), or in 8 (torchao)",
    )
    add("--offload", action="store_true", help="transformer in main memory, block by block to the GPU, for 24 GB")


def add_drawing_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that say how a picture is drawn."""
    add = parser.add_argument_group("drawing").add_argument
    add("--num_inference_steps", type=STEPS, metavar="N", help="denoising steps (default: the LoRA's)")
    add("--guidance_scale", type=AMOUNT, metavar="X", help="embedded guidance (default: the LoRA's)")
    side: dict[str, Any] = {"type": DRAWN_SIDE, "metavar": "PIXELS"}
    add("--height", **side, help="height that the model draws at, a multiple of 16 (default: the LoRA's)")
    add("--width", **side, help="width of one half of the pair, a multiple of 16 (default: the LoRA's)")
    add("--resize_mode", choices=("pad", "stretch"), help="how photos fit that size (default: as the LoRA was trained)")
    add("--prompt", help="prompt (default: the LoRA's)")
    add("--seed", type=number(int, 0, 2**63 - 1), default=0, help="seed of the noise")


def add_parser_flag(group: argparse._ArgumentGroup) -> None:
    """The flag that ``choose_parser`` reads."""
    group.add_argument(
        "--parser", metavar="MODEL", help="human parser, folder or Hub id (default: mattmdjaga/segformer_b2_clothes)"
    )


@dataclass(frozen=True)
class ModelChoice:
    """Models that are there and fit one another, yet to be loaded, and how to draw with them."""

    recipe: Recipe
    lora: LoraFile | None
    lora_scale: float
    quantize_base: Any
    offload: bool

    @property
    def notes(self) -> list[str]:
        """What a user should know before it is drawn, in lines."""
        notes = [] if self.lora is None else list(self.lora.notes)
        silent = [] if self.lora is None else [name for name in _TRAINED_WITH if name not in self.lora.metadata]
        if silent:
            notes.append(
                f"the LoRA does not say its {', '.join(silent)} in training: usual values or your flags are used"
            )
        if self.offload:
            from deepfashion_training.models.fill import plan_offload

            notes.append(plan_offload(self.recipe.transformer)[1])
        return notes

    def lines(self, settings: DrawingSettings, seed: int) -> list[str]:
        """What is about to be drawn, and with what."""
        height, width = settings.size
        lora = f"{self.lora.path}, scale {self.lora_scale:g}" if self.lora else "none: the bare base"
        return [
            f"base      {self.recipe.transformer}",
            f"LoRA      {lora}",
            f"drawing   {height}x{width} (height x width), {settings.num_inference_steps} steps, "
            f"guidance {settings.guidance_scale:g}, seed {seed}",
            f"repaint   {'on: beyond the mask the photo stays' if settings.repaint else 'off: as the model drew it'}",
            *(f"note      {note}" for note in self.notes),
        ]

    def load(self, prompts: Iterable[str], *, device: Any = None, **others: LoraFile) -> FillModel:
        """The model, with the LoRA under the name ``lora`` and ``others`` under theirs; see ``FillModel``."""
        from deepfashion_training.models.fill import FillModel

        loras = others | ({} if self.lora is None else {"lora": self.lora})
        return FillModel(
            self.recipe, prompts, loras=loras, quantize_base=self.quantize_base, offload=self.offload, device=device
        )

    def drawing(self, **changes: Any) -> DrawingSettings:
        """Settings that the recipe gives, with the LoRA at its scale; ``changes`` replace fields by name."""
        from deepfashion_training.inference.dress import DrawingSettings

        recipe = self.recipe
        settings = DrawingSettings(
            size=(recipe.height, recipe.width),
            num_inference_steps=recipe.num_inference_steps,
            guidance_scale=recipe.guidance_scale,
            lora=None if self.lora is None else "lora",
            lora_scale=self.lora_scale,
            resize_mode=recipe.resize_mode,
        )
        return dataclasses.replace(settings, **changes)

    def described(self) -> dict[str, Any]:
        """What a record of the pictures has to say about the models, ready for JSON."""
        import torch

        from deepfashion_training.models.fill import precision_of

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return {
            "lora": None if self.lora is None else str(self.lora.path),
            "lora_sha256": None if self.lora is None else self.lora.sha256,
            "lora_scale": None if self.lora is None else self.lora_scale,
            "transformer": _full_name(self.recipe.transformer),
            "pipeline": _full_name(self.recipe.pipeline),
            "quantize_base": self.quantize_base,
            "precision": "bf16" if precision_of(self.recipe.transformer, device) == torch.bfloat16 else "fp32",
            "prompt": self.recipe.prompt,
            "use_captions": self.recipe.use_captions,
            "colours": "sRGB",  # whatever profiles the pictures brought
        }

    def record(self, settings: DrawingSettings, parser: str | None = None) -> dict[str, Any]:
        """What the record of a picture drawn with ``settings`` says; ``parser`` is the one that made its mask."""
        models = (self if settings.lora else dataclasses.replace(self, lora=None)).described()
        drawing = dataclasses.asdict(settings)
        del drawing["lora"]  # a name inside this program
        return {**models, **drawing, "parser": parser}


def choose(args: argparse.Namespace) -> ModelChoice:
    """What the flags of ``add_model_flags`` and ``add_drawing_flags`` ask for.

    Raises ``ValueError``, one line, for a LoRA or base that is missing, for a LoRA that does not fit the base, and for
    what this machine cannot run.
    """
    from deepfashion_training.embedded import is_embedded
    from deepfashion_training.models import fill
    from deepfashion_training.models.access import USING_FLAGS, check_models
    from deepfashion_training.models.lora_files import fitted
    from training_run import guards
    from training_run.hub import is_hub_id
    from training_run.lora_formats import find_lora, read_lora

    fill.check_means(args.quantize_base, args.offload)
    if args.lora is None and args.lora_scale != 1:
        raise ValueError(f"--lora_scale {args.lora_scale:g} scales nothing: name a LoRA with --lora, or leave it out")
    lora = None
    if args.lora is not None:
        lora = read_lora(find_lora(args.lora))
    asked = _asked(args, {} if lora is None else lora.metadata)
    recipe = fill.Recipe(**asked) if lora is None else fill.Recipe.of(lora, **asked)
    if is_hub_id(recipe.transformer) or (not is_embedded(recipe.transformer) and guards.gpu_fault()):
        guards.check_gpu(guards.NO_GPU, "add --embedded to try it on this machine")
    check_models(recipe.pipeline, recipe.transformer, flags=USING_FLAGS)
    if lora is not None:
        lora = fitted(lora, recipe.transformer)
    if args.offload:
        fill.plan_offload(recipe.transformer)
    return ModelChoice(recipe, lora, args.lora_scale, args.quantize_base, args.offload)


def choose_parser(named: str | None, choice: ModelChoice) -> str:
    """The human parser that makes masks, once it is known to be there: ``named``, or the usual one.

    That of the small embedded model knows drawn people, and nobody else.
    """
    from deepfashion_training.embedded import DRAWN_PARSER, is_embedded
    from deepfashion_training.models.human_parser import DEFAULT_PARSER, check_human_parser

    if named is None and is_embedded(choice.recipe.transformer):
        return str(DRAWN_PARSER)
    check_human_parser(named or DEFAULT_PARSER)
    return named or DEFAULT_PARSER


def _asked(args: argparse.Namespace, said: dict[str, str]) -> dict[str, Any]:
    """Fields of the recipe that the flags change; ``said`` is the LoRA's metadata."""
    from deepfashion_training.embedded import TINY_FLUX_FILL

    asked: dict[str, Any] = {}
    if args.embedded:
        asked |= dict.fromkeys(("pipeline", "transformer"), str(TINY_FLUX_FILL))
        preset = load_preset("embedded").flags
        own: dict[str, Any] = {"guidance_scale": 1.0}
        for name in ("height", "width", "max_sequence_length", "num_inference_steps"):
            own[name] = int(preset[name])
        asked |= {name: value for name, value in own.items() if name not in said}
    if args.base is not None:
        asked["transformer"] = args.base
        if (Path(args.base) / "model_index.json").is_file():  # a whole pipeline
            asked["pipeline"] = args.base
    for name in ("pipeline", "height", "width", "prompt", "guidance_scale", "resize_mode", "num_inference_steps"):
        value = getattr(args, name, None)
        if value is not None:
            asked[name] = value
    return asked


def _full_name(name: str) -> str:
    """A folder by its full path, a Hub id as it is: a record must not depend on where a command is started."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name

"""The models that a command draws with, from its flags and the LoRA's metadata, checked before they are loaded."""

# Nothing heavy is imported up here, so that --help answers at once.
from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepfashion_training.cli import LoraFlag, load_preset, lora_scales, number
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
    about = "folder or file of any usual format, or Hub id; repeat it to add another; without any the bare base"
    add("--lora", action=LoraFlag, metavar="LORA", help=about)
    about = "multiplies what the LoRA before it changes (default: 1)"
    add("--lora_scale", action=LoraFlag, type=number(float), metavar="X", help=about)
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


def add_crop_flag(group: argparse._ArgumentGroup) -> None:
    """The flag of ``DrawingSettings.crop``."""
    about = "in larger photos draw the part around the mask, and paste it back"
    group.add_argument("--crop", action=argparse.BooleanOptionalAction, default=True, help=about)


def add_parser_flag(group: argparse._ArgumentGroup) -> None:
    """The flag that ``choose_parser`` reads."""
    group.add_argument(
        "--parser", metavar="MODEL", help="human parser, folder or Hub id (default: mattmdjaga/segformer_b2_clothes)"
    )


@dataclass(frozen=True)
class ModelChoice:
    """Models that are there and fit one another, yet to be loaded, and how to draw with them."""

    recipe: Recipe
    loras: tuple[LoraFile, ...]
    """Their updates add up."""
    scales: tuple[float, ...]
    quantize_base: Any
    offload: bool

    @property
    def notes(self) -> list[str]:
        """What a user should know before it is drawn, in lines."""
        notes = [note for lora in self.loras for note in lora.notes]
        silent = [name for name in _TRAINED_WITH if not any(name in lora.metadata for lora in self.loras)]
        if silent and self.loras:
            notes.append(
                f"the LoRA does not say its {', '.join(silent)} in training: usual values or your flags are used"
            )
        for name in _TRAINED_WITH:
            said = [(lora.metadata[name], lora.path) for lora in self.loras if name in lora.metadata]
            if len({value for value, _ in said}) > 1 or (said and said[0][1] != self.loras[0].path):
                each = ", ".join(f"{value} by {path}" for value, path in said)
                notes.append(f"{name} is {getattr(self.recipe, name)}: the LoRAs say {each}")
        if self.offload:
            from deepfashion_training.models.fill import plan_offload

            notes.append(plan_offload(self.recipe.transformer)[1])
        return notes

    def lines(self, settings: DrawingSettings, seed: int) -> list[str]:
        """What is about to be drawn, and with what."""
        height, width = settings.size
        loras = [f"{lora.path}, scale {scale:g}" for lora, scale in zip(self.loras, self.scales, strict=True)]
        return [
            f"base      {self.recipe.transformer}",
            *(f"LoRA      {lora}" for lora in loras or ["none: the bare base"]),
            f"drawing   {height}x{width} (height x width), {settings.num_inference_steps} steps, "
            f"guidance {settings.guidance_scale:g}, seed {seed}",
            f"repaint   {'on: beyond the mask the photo stays' if settings.repaint else 'off: as the model drew it'}",
            *(f"note      {note}" for note in self.notes),
        ]

    def load(self, prompts: Iterable[str], *, device: Any = None, **others: LoraFile) -> FillModel:
        """The model, with the LoRAs by the names that ``drawing`` has and ``others`` by theirs; see ``FillModel``."""
        from deepfashion_training.models.fill import FillModel

        loras = others | dict(zip(self._names, self.loras, strict=True))
        return FillModel(
            self.recipe, prompts, loras=loras, quantize_base=self.quantize_base, offload=self.offload, device=device
        )

    @property
    def _names(self) -> list[str]:
        """What the model knows the LoRAs by."""
        return ["lora", *(f"lora_{number}" for number in range(2, len(self.loras) + 1))][: len(self.loras)]

    def drawing(self, scales: Sequence[float] | None = None, **changes: Any) -> DrawingSettings:
        """Settings that the recipe gives, with the LoRAs at ``scales`` or their own; ``changes`` replace fields."""
        from deepfashion_training.inference.dress import DrawingSettings

        recipe = self.recipe
        settings = DrawingSettings(
            size=(recipe.height, recipe.width),
            num_inference_steps=recipe.num_inference_steps,
            guidance_scale=recipe.guidance_scale,
            loras=dict(zip(self._names, self.scales if scales is None else scales, strict=True)),
            resize_mode=recipe.resize_mode,
        )
        return dataclasses.replace(settings, **changes)

    def described(self) -> dict[str, Any]:
        """What a record of the pictures has to say about the models, ready for JSON: lists where LoRAs are several."""
        import torch

        from deepfashion_training.models.fill import precision_of

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return {
            "lora": _plain([str(lora.path) for lora in self.loras]),
            "lora_sha256": _plain([lora.sha256 for lora in self.loras]),
            "lora_scale": _plain(self.scales),
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
        loras = self.loras if settings.loras else ()
        models = dataclasses.replace(self, loras=loras, scales=tuple(settings.loras.values())).described()
        drawing = dataclasses.asdict(settings)
        del drawing["loras"], drawing["crop"]  # by names inside this program; known with the mask, see crop_record
        scale = models["lora_scale"] if loras else 1.0  # as records have always had it
        return {**models, **drawing, "lora_scale": scale, "parser": parser}


def choose(args: argparse.Namespace) -> ModelChoice:
    """What the flags of ``add_model_flags`` and ``add_drawing_flags`` ask for.

    Raises ``ValueError``, one line, for a LoRA or base that is missing, for a LoRA that does not fit the base, for two
    DoRAs, and for what this machine cannot run.
    """
    from deepfashion_training.embedded import is_embedded
    from deepfashion_training.models import fill
    from deepfashion_training.models.access import USING_FLAGS, check_models
    from training_run import guards
    from training_run.hub import is_hub_id
    from training_run.lora_formats import find_lora, fitted, read_lora

    fill.check_means(args.quantize_base, args.offload)
    if not args.lora and args.lora_scale and args.lora_scale[0] != 1:
        scale = args.lora_scale[0]
        raise ValueError(f"--lora_scale {scale:g} scales nothing: name a LoRA with --lora, or leave it out")
    loras = [read_lora(find_lora(name)) for name in args.lora or ()]
    if len(doras := [str(lora.path) for lora in loras if lora.config.use_dora]) > 1:
        raise ValueError(
            f"--lora {' and '.join(doras)} are DoRAs, whose updates do not add up: write the first into the base with "
            "export --format fused, and name that with --base"
        )
    recipe = fill.Recipe.of(*loras, **_asked(args, {name for lora in loras for name in lora.metadata}))
    if is_hub_id(recipe.transformer) or (not is_embedded(recipe.transformer) and guards.gpu_fault()):
        guards.check_gpu(guards.NO_GPU, "add --embedded to try it on this machine")
    check_models(recipe.pipeline, recipe.transformer, flags=USING_FLAGS)
    loras = [fitted(lora, recipe.transformer) for lora in loras]
    if args.offload:
        fill.plan_offload(recipe.transformer)
    return ModelChoice(recipe, tuple(loras), tuple(lora_scales(args)), args.quantize_base, args.offload)


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


def _asked(args: argparse.Namespace, said: set[str]) -> dict[str, Any]:
    """Fields of the recipe that the flags change; ``said`` are the names in the metadata of the LoRAs."""
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


def _plain(values: Sequence[Any]) -> Any:
    """A single value, None for none, or the list."""
    return (values[0] if values else None) if len(values) < 2 else list(values)


def _full_name(name: str) -> str:
    """A folder by its full path, a Hub id as it is: a record must not depend on where a command is started."""
    return str(Path(name).resolve()) if Path(name).is_dir() else name

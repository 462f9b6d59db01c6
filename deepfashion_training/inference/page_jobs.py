"""What the page does with the model: a mask for a photo, and a person drawn with and without the LoRA."""

from __future__ import annotations

import dataclasses
import math
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deepfashion_training.cli import describe
from deepfashion_training.inference.choice import ModelChoice
from deepfashion_training.inference.dress import DrawingSettings, dress, mask_of_type
from deepfashion_training.inference.records import save_picture
from deepfashion_training.inference.requests import TryOnRequest
from deepfashion_training.inference.result_files import upright
from deepfashion_training.inference.upload_store import Picked
from deepfashion_training.models.fill import FillModel
from deepfashion_training.models.human_parser import HumanParser

MAX_STEPS = 100
#: The largest seed that a browser holds exactly.
MAX_SEED = 2**53 - 1
#: Two or more names after slashes: a path of the server.
_PATH = re.compile(r"(?<![\w/.])(?:/[^/\s:'\"]+){2,}")


@dataclass(frozen=True)
class Order:
    """What to draw: ``mask`` uint8 [h, w] in {0, 1} of the person's upright photo."""

    person: Picked
    garment: Picked
    cloth_type: int
    mask: np.ndarray
    seed: int
    steps: int
    guidance_scale: float
    lora_scale: float
    repaint: bool


class Studio:
    """A loaded model, a parser, and the folder that results go to. Whoever calls sees to it that jobs come singly."""

    def __init__(self, choice: ModelChoice, model: FillModel, parser: HumanParser, folder: Path) -> None:
        self.choice = choice
        self.model = model
        self.parser = parser
        self.folder = folder

    def masked(self, photo: Image.Image, cloth_type: int) -> np.ndarray:
        """The mask that training would use, see ``mask_of_type``; raises ``PictureError``."""
        return mask_of_type(photo, cloth_type, self.parser)

    def looks(self, order: Order) -> dict[str, DrawingSettings]:
        """How ``order`` is drawn: ``base``, and ``lora`` where there is one."""
        fields = {"guidance_scale": order.guidance_scale, "lora_scale": order.lora_scale, "repaint": order.repaint}
        look = self.choice.drawing(num_inference_steps=order.steps, **fields)
        bare = {"base": dataclasses.replace(look, lora=None, lora_scale=1.0)}
        return bare if look.lora is None else {**bare, "lora": look}

    def draw(self, order: Order, on_step: Callable[[int, int], object]) -> dict[str, Path]:
        """Draw the base, and the LoRA from the same noise: PNG files by the names of ``looks``.

        Each file's text field says how it was made, as that of ``tryon`` does. ``on_step`` is told the steps that are
        done and all of them. Raises ``ValueError`` for pictures that cannot be used.
        """
        photo = upright(order.person.read("the person"))
        garment = order.garment.read("the garment")
        looks = self.looks(order)
        prompt = self.choice.recipe.prompt_of()
        stem = f"tryon-{secrets.token_hex(3)}-seed{order.seed}"
        mask_file = self.folder / f"{stem}-mask.png"
        files: dict[str, Path] = {}
        for name, look in looks.items():
            told = _counting(on_step, len(files) * order.steps, len(looks) * order.steps)
            made = dress(self.model, photo, garment, order.mask, look, prompt, order.seed, on_step=told)
            files[name] = self.folder / f"{stem}-{name}.png"
            request = TryOnRequest(order.person.path, order.garment.path, mask_file, order.cloth_type, "", files[name])
            save_picture(Image.fromarray(order.mask * np.uint8(255)), mask_file, {})
            try:
                record = request.record({**self._settings(look), "seed": order.seed})
            finally:
                mask_file.unlink()
            save_picture(made.picture, files[name], record)
        return files

    def _settings(self, look: DrawingSettings) -> dict[str, Any]:
        """What a result's record says of the models and of ``look``; folders of the server go by their last name."""
        choice = self.choice if look.lora is not None else dataclasses.replace(self.choice, lora=None)
        models = {
            name: plain_name(value) if isinstance(value, str) else value for name, value in choice.described().items()
        }
        drawn = dataclasses.asdict(look)
        del drawn["lora"]  # a name inside this program
        return {**models, **drawn, "parser": None}  # the mask came as a picture


def _counting(on_step: Callable[[int, int], object], before: int, steps: int) -> Callable[[int], object]:
    return lambda done: on_step(before + done, steps)


def plain_name(model: str) -> str:
    """A model's Hub id, or the last name of its folder: where it lies on the server is nobody's business."""
    path = Path(model).expanduser()
    if path.is_file():  # a LoRA, whose folder says more than its usual name
        path = path.resolve().parent
    return path.resolve().name if path.is_dir() else model


def read_number(value: object, what: str, low: float, high: float, *, whole: bool = False) -> float:
    """A number from the page's fields in [low, high]; ``ValueError`` that names ``what`` and the limits."""
    limits = f"from {low:g} to {high:g}" if high < 1e6 else f"from {low:g}"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{what}: a number {limits} is needed")
    if not low <= value <= high:
        raise ValueError(f"{what} {value:g} is not {limits}")
    if whole and value != int(value):
        raise ValueError(f"{what} {value:g} is not a whole number")
    return int(value) if whole else float(value)


def why(error: Exception) -> str:
    """One line for the page on why a job failed, without the server's paths."""
    if isinstance(error, OSError):
        text = f"the server cannot read or write a file: {error.strerror or type(error).__name__}"
    else:
        text = describe(error).replace(" (--debug shows the traceback)", " (the server's terminal says more)")
    return _PATH.sub("…", text)

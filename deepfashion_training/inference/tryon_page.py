"""The demo's page: choose a person and a garment, paint the mask, see base and LoRA side by side."""

from __future__ import annotations

import dataclasses
import functools
import html
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from deepfashion_training.embedded import is_embedded
from deepfashion_training.embedded.rows import RowSpec, documented_row
from deepfashion_training.garment_types import FULL, LOWER, TYPE_NAMES, UPPER, parse_cloth_type
from deepfashion_training.images.pictures import PictureError
from deepfashion_training.inference import mask_painter
from deepfashion_training.inference.choice import ModelChoice
from deepfashion_training.inference.dress import dress, mask_of_type
from deepfashion_training.inference.picture_files import read_picture, without_exif
from deepfashion_training.inference.records import save_picture
from deepfashion_training.inference.requests import TryOnRequest
from deepfashion_training.models.fill import FillModel
from deepfashion_training.models.human_parser import HumanParser
from training_run.hub import is_hub_id

#: Seconds after which uploads and results are deleted, and how often that is checked.
KEEP_SECONDS, CHECK_SECONDS = 4 * 3600, 600
MAX_STEPS, MAX_GUIDANCE = 100, 100.0
#: The largest seed that a browser holds exactly.
MAX_SEED = 2**53 - 1
#: Height and width of the examples, and how many there are of each garment type.
EXAMPLE_SIZE, EXAMPLE_PEOPLE, EXAMPLE_GARMENTS = (384, 288), 2, 3
_EXAMPLE_SEED = 5
_HERE = Path(__file__).parent
#: One event at a time uses the models. Values come as the browser sends them, files after Gradio's own checks.
_QUEUED: dict[str, Any] = {
    "concurrency_limit": 1,
    "concurrency_id": "models",
    "preprocess": False,
    "api_visibility": "private",
}
_PROGRESS = gr.Progress()


class TryOnPage:
    """What happens when somebody uses the page: the models, and the folder that results go to."""

    def __init__(self, choice: ModelChoice, model: FillModel, parser: HumanParser, folder: Path) -> None:
        self.choice = choice
        self.model = model
        self.parser = parser
        self.folder = folder

    def make_mask(self, person: Any, cloth_type: Any) -> str:
        """Value of the canvas: the photo with the mask for the garment type; empty where there is no photo."""
        if not person:
            return ""
        path, stored = _picture(person, "person")
        photo = without_exif(stored)
        try:
            mask = mask_of_type(photo, parse_cloth_type(cloth_type), self.parser)
        except PictureError as error:
            gr.Warning(f"No mask was made: {html.escape(str(error))}. You can paint it yourself.", duration=None)
            mask = np.zeros((photo.height, photo.width), np.uint8)
        return mask_painter.to_browser(_identity(path), photo, mask)

    def dress(
        self,
        person: Any,
        garment: Any,
        canvas: Any,
        cloth_type: Any,
        seed: Any,
        steps: Any,
        guidance: Any,
        lora_scale: Any,
        repaint: Any,
        progress: gr.Progress = _PROGRESS,
    ) -> tuple[str, str, str | None]:
        """A line on what was drawn, and the PNG files of the base and, where there is one, of the LoRA.

        Both are drawn from the same noise. Their records say how, as those of ``tryon`` do.
        """
        began = time.monotonic()
        person_path, stored = _picture(person, "person")
        garment_path, cloth = _picture(garment, "garment")
        photo = without_exif(stored)
        mask = mask_painter.mask_of(canvas, _identity(person_path), photo)
        seed = int(_number(seed, "seed", 0, MAX_SEED))
        settings = self.choice.drawing(
            num_inference_steps=int(_number(steps, "steps", 1, MAX_STEPS)),
            guidance_scale=_number(guidance, "guidance", 0, MAX_GUIDANCE),
            lora_scale=_number(lora_scale, "LoRA scale", *scale_limits(self.choice)),
            repaint=bool(repaint),
        )
        by_name = {"base": dataclasses.replace(settings, lora=None, lora_scale=1.0)}
        if settings.lora is not None:
            by_name["LoRA"] = settings
        folder = self.folder / secrets.token_hex(16)  # other users cannot guess it
        files: list[str] = []
        for name, how in by_name.items():
            on_step = functools.partial(_show_step, progress, name, how.num_inference_steps)
            made = dress(self.model, photo, cloth, mask, how, self.choice.recipe.prompt_of(), seed, on_step)
            file = folder / f"tryon-seed{seed}-{name.lower()}.png"
            request = TryOnRequest(person_path, garment_path, None, parse_cloth_type(cloth_type), "", file)
            record = {**self.choice.record(how), "seed": seed, "mask": "painted on the page"}
            save_picture(made.picture, file, request.record(record))
            files.append(str(file))
        text = f"Done in {time.monotonic() - began:.1f} s: seed {seed}, {settings.num_inference_steps} steps, guidance "
        text += f"{settings.guidance_scale:g}" + (f", LoRA scale {settings.lora_scale:g}" if settings.lora else "")
        return text, files[0], files[1] if settings.lora else None


def _picture(value: Any, what: str) -> tuple[Path, Image.Image]:
    """Path and picture of an image field; ``what`` is ``person`` or ``garment``. Messages have the file's name only."""
    if not value:
        raise ValueError(f"no {what} yet: upload a picture or pick one of the examples")
    path = Path(value["path"])
    if not path.is_file():
        raise ValueError(f"the server no longer has the picture of the {what}: choose it again")
    try:
        return path, read_picture(path, f"the {what}")
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), path.name)) from error


def _identity(path: Path) -> str:
    """What tells the photos of one server apart: Gradio's folder of an upload is named after its content."""
    return f"{path.parent.name}/{path.name}"


def _number(value: Any, name: str, low: float, high: float) -> float:
    if not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{name}: a number from {low:g} to {high:g} is needed")
    return float(value)


def _show_step(progress: gr.Progress, name: str, steps: int, done: int) -> None:
    progress((done, steps), desc=name)


def scale_limits(choice: ModelChoice) -> tuple[float, float]:
    """Smallest and largest LoRA scale that the page offers: 0 to 2, and the one of the command line."""
    return min(0.0, choice.lora_scale), max(2.0, choice.lora_scale)


def _with_messages(event: Callable[..., Any]) -> Callable[..., Any]:
    """``event`` with errors as messages that stay on the page; those that nobody expects go to the terminal too."""

    @functools.wraps(event)
    def answer(*values: Any) -> Any:
        try:
            return event(*values)
        except ValueError as error:
            raise gr.Error(html.escape(str(error)), duration=None, print_exception=False) from error
        except Exception as error:
            text = html.escape(f"{type(error).__name__}: {error} (the server's terminal says more)")
            raise gr.Error(text, duration=None) from error

    return answer


def draw_examples(folder: Path) -> tuple[list[list[Any]], list[list[Any]]]:
    """Rows of ``gr.Examples``, drawn into ``folder``: people, and garments with their type. Always the same ones."""
    folder.mkdir(parents=True, exist_ok=True)
    people: list[list[Any]] = []
    garments: list[list[Any]] = []
    index = 0
    for cloth_type, name in TYPE_NAMES.items():
        for number in range(EXAMPLE_PEOPLE + EXAMPLE_GARMENTS):
            # The whole body from the front, as the small model knows people; the garments are other people's.
            spec = RowSpec(_EXAMPLE_SEED, index, index, 1, "full", cloth_type, cloth_type, studio=True)
            row = documented_row(spec, EXAMPLE_SIZE)
            is_person = number < EXAMPLE_PEOPLE
            path = folder / f"{'person' if is_person else name}-{index}.jpg"
            path.write_bytes(row["image" if is_person else "cloth"]["bytes"])
            if is_person:
                people.append([str(path)])
            else:
                garments.append([str(path), cloth_type])
            index += 1
    return people, garments


def build(page: TryOnPage, folder: Path, seed: int, max_upload_mb: int) -> gr.Blocks:
    """The page with its events, yet to be launched; ``folder`` is the one to draw the examples in."""
    gr.set_static_paths([folder])  # which Gradio neither copies nor deletes after some hours
    people, garments = draw_examples(folder)
    blocks = gr.Blocks(title="Try-on", analytics_enabled=False, delete_cache=(CHECK_SECONDS, KEEP_SECONDS))
    with blocks:
        lines = "".join(f"<p>{html.escape(line, quote=False)}</p>" for line in _about(page.choice))
        gr.HTML(f"<h1>Try a garment on</h1>{lines}", elem_id="head")
        types = [("Upper", UPPER), ("Lower", LOWER), ("Full body", FULL)]
        cloth_type = gr.Radio(types, value=UPPER, label="Garment type", elem_id="type", render=False)
        examples: dict[str, Any] = {"label": "or pick one of these", "api_visibility": "private"}
        with gr.Row():
            with gr.Column(min_width=280):
                gr.HTML(f"<h2>1 · Person</h2><p>Photo of the whole person, up to {max_upload_mb} MB</p>")
                person = _upload("person")
                gr.Examples(people, person, elem_id="people", **examples)
            with gr.Column(min_width=280):
                gr.HTML(f"<h2>2 · Garment</h2><p>Picture of the garment alone, up to {max_upload_mb} MB</p>")
                garment = _upload("garment")
                gr.Examples(garments, [garment, cloth_type], visible_columns=[0], elem_id="garments", **examples)
            with gr.Column(min_width=300):
                gr.HTML("<h2>3 · What to repaint</h2>")
                cloth_type.render()
                canvas = _canvas()
                make = gr.Button("Make the mask", size="sm", elem_id="make")
        with gr.Row():
            with gr.Column(min_width=280):
                gr.HTML("<h2>4 · Dress</h2>")
                numbers = _numbers(page.choice, seed)
                run = gr.Button("Dress", variant="primary", elem_id="run")
                status = gr.Markdown(
                    "Choose a person and a garment, look at the mask, then press “Dress”.", elem_id="status"
                )
            results = _results(has_lora=page.choice.lora is not None)
        gr.on(
            [person.change, cloth_type.change, make.click],
            _with_messages(page.make_mask),
            [person, cloth_type],
            canvas,
            **_QUEUED,
        )
        inputs = [person, garment, canvas, cloth_type, *numbers]
        run.click(_with_messages(page.dress), inputs, [status, *results], show_progress_on=results[0], **_QUEUED)
    return blocks


def _about(choice: ModelChoice) -> list[str]:
    """What the page says of its models."""
    recipe = choice.recipe
    models = f"Base {recipe.transformer if is_hub_id(recipe.transformer) else Path(recipe.transformer).name}"
    if choice.lora is not None:
        models += f" and LoRA {choice.lora.path.parent.name} draw from the same noise"
    lines = [f"{models}. Drawn at {recipe.width}x{recipe.height}, shown in the photo's own size."]
    if is_embedded(recipe.transformer):
        lines.append("This small model knows drawn people, and tops unless a LoRA taught it more; 1 step is best.")
    if recipe.use_captions:
        lines.append("The LoRA was trained with captions: here it draws without one.")
    return lines


def _upload(name: str) -> gr.Image:
    return gr.Image(sources=["upload", "clipboard"], label=name, show_label=False, height=250, elem_id=name)


def _canvas() -> gr.HTML:
    return gr.HTML(
        value="",
        html_template=(_HERE / "painter.html").read_text(encoding="utf-8"),
        js_on_load=(_HERE / "painter.js").read_text(encoding="utf-8"),
        elem_id="canvas",
    )


def _numbers(choice: ModelChoice, seed: int) -> list[gr.components.Component]:
    """Seed, steps, guidance, LoRA scale and repaint, in the order of ``TryOnPage.dress``."""
    recipe, has_lora = choice.recipe, choice.lora is not None
    low, high = scale_limits(choice)
    with gr.Row():
        seed_field = gr.Number(seed, label="Seed", precision=0, minimum=0, min_width=90, elem_id="seed")
        steps = gr.Slider(1, MAX_STEPS, value=recipe.num_inference_steps, step=1, label="Steps", min_width=150)
    return [
        seed_field,
        steps,
        gr.Slider(0, MAX_GUIDANCE, value=recipe.guidance_scale, step=0.5, label="Guidance"),
        gr.Slider(low, high, value=choice.lora_scale, step=0.05, label="LoRA scale", visible=has_lora),
        gr.Checkbox(True, label="Keep the photo outside the mask", elem_id="repaint"),
    ]


def _results(*, has_lora: bool) -> Sequence[gr.Image]:
    """The pictures of base and LoRA."""
    pictures = []
    for label in ("Base", "LoRA"):
        with gr.Column(min_width=280, visible=has_lora or label == "Base"):
            buttons: list[Any] = ["download", "fullscreen"]
            name = f"{label.lower()}-result"
            picture = gr.Image(label=label, interactive=False, format="png", height=470, buttons=buttons, elem_id=name)
            pictures.append(picture)
    if not has_lora:
        with gr.Column(min_width=280):
            gr.Markdown("No LoRA was given: start the page with --lora to see one here, beside the base.")
    return pictures

"""The demo's page: choose a person and a garment, paint the mask, see base and LoRA side by side."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import json
import secrets
import time
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from deepfashion_training.embedded import is_embedded
from deepfashion_training.embedded.rows import RowSpec, documented_row
from deepfashion_training.garment_types import FULL, LOWER, UPPER
from deepfashion_training.images.pictures import PictureError, open_picture
from deepfashion_training.inference.choice import ModelChoice
from deepfashion_training.inference.dress import crop_lines, crop_record, dress, mask_given, mask_of_type
from deepfashion_training.inference.picture_files import read_picture, without_exif
from deepfashion_training.inference.records import save_picture
from deepfashion_training.inference.requests import TryOnRequest, naming
from deepfashion_training.models.fill import FillModel
from deepfashion_training.models.human_parser import HumanParser

MAX_STEPS, MAX_GUIDANCE = 100, 100
#: The largest seed that a browser holds exactly.
MAX_SEED = 2**53 - 1
#: Longer side of the picture that people paint on. A larger photo's mask comes back in steps of its pixels.
CANVAS_SIDE = 1024
#: Height and width of the examples, and how many there are of each garment type.
EXAMPLE_SIZE, EXAMPLE_PEOPLE, EXAMPLE_GARMENTS = (384, 288), 2, 3
_EXAMPLE_SEED = 5
_HERE = Path(__file__).parent
#: One event at a time uses the models.
_QUEUED: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "models", "api_visibility": "private"}
_PROGRESS = gr.Progress()


class TryOnPage:
    """What happens when somebody uses the page: the models, and the folder that results go to.

    Pictures come as files, numbers as Gradio has checked them against the limits of their fields. A ``ValueError`` is
    shown on the page.
    """

    def __init__(
        self, choice: ModelChoice, model: FillModel, parser: HumanParser, folder: Path, *, crop: bool = True
    ) -> None:
        self.choice = choice
        self.model = model
        self.parser = parser
        self.folder = folder
        self.crop = crop

    def make_mask(self, person: str | None, cloth_type: int) -> str:
        """Value of the canvas: the photo with the mask for the garment type; empty where there is no photo."""
        if not person:
            return ""
        photo = without_exif(read_picture(person, "the person"))
        try:
            mask = mask_of_type(photo, cloth_type, self.parser)
        except PictureError as error:
            gr.Warning(f"No mask was made: {error}. You can paint it yourself.", duration=None)
            mask = np.zeros((photo.height, photo.width), np.uint8)
        return to_browser(person, photo, mask)

    def dress(
        self,
        person: str | None,
        garment: str | None,
        canvas: str,
        cloth_type: int,
        seed: int | None,
        steps: float,
        guidance: float,
        lora_scale: float,
        repaint: bool,
        second: str | None = None,
        second_type: int = LOWER,
        progress: gr.Progress = _PROGRESS,
        *more_scales: float,
    ) -> tuple[str, str, str | None]:
        """A line on what was drawn, and the PNG files of the base and, where there is one, of the LoRA.

        Both are drawn from the same noise. Their records say how, as those of ``tryon`` do. A ``second`` garment is
        drawn over the first, in a mask that the parser makes of the photo.
        """
        began = time.monotonic()
        if not person or not garment:
            raise ValueError("a person and a garment are needed: upload pictures or pick examples")
        photo = without_exif(read_picture(person, "the person"))
        cloth = read_picture(garment, "the garment")
        worn = [(cloth, mask_of(canvas, person, photo))]
        if second:
            with naming(f"the person {person}"):
                worn.append((read_picture(second, "the second garment"), mask_of_type(photo, second_type, self.parser)))
        seed, steps = seed or 0, int(steps)
        scales = [lora_scale, *more_scales][: len(self.choice.loras)]
        settings = self.choice.drawing(
            scales, num_inference_steps=steps, guidance_scale=guidance, repaint=repaint, crop=self.crop
        )
        by_name = {"base": dataclasses.replace(settings, loras={})}
        if settings.loras:
            by_name["lora"] = settings
        crops = crop_record([mask for _, mask in worn], settings)
        folder = self.folder / secrets.token_hex(16)  # other users cannot guess it
        files = []
        prompt = self.choice.recipe.prompt_of()
        for name, how in by_name.items():
            on_step = functools.partial(_show_step, progress, name, steps)
            picture = photo
            for garment_picture, mask in worn:
                picture, _ = dress(self.model, picture, garment_picture, mask, how, prompt, seed, on_step)
            file = folder / f"tryon-seed{seed}-{name}.png"
            more = (TryOnRequest(Path(person), Path(second), None, second_type, "", file),) if second else ()
            request = TryOnRequest(Path(person), Path(garment), None, cloth_type, "", file, more)
            record = request.record({**self.choice.record(how), "mask": "painted on the page"}, seed)
            save_picture(picture, file, record | crops)
            files.append(str(file))
        text = f"Done in {time.monotonic() - began:.1f} s: seed {seed}, {steps} steps, guidance {guidance:g}"
        text = ", ".join([text, *(" ".join(line.split()) for line in crop_lines([mask for _, mask in worn], settings))])
        if not settings.loras:
            return text, files[0], None
        return f"{text}, LoRA scale {' and '.join(f'{scale:g}' for scale in scales)}", files[0], files[1]


def _show_step(progress: gr.Progress, name: str, steps: int, done: int) -> None:
    progress((done, steps), desc=name)


def canvas_size(photo: Image.Image) -> tuple[int, int]:
    """Width and height of the canvas for a photo: its own, or as many pixels as fit into ``CANVAS_SIDE``."""
    scale = min(1.0, CANVAS_SIDE / max(photo.size))
    return max(1, round(photo.width * scale)), max(1, round(photo.height * scale))


def to_browser(person: str, photo: Image.Image, mask: np.ndarray) -> str:
    """What the canvas (``painter.js``) shows: an upright RGB photo and ``mask`` [h, w] in {0, 1}.

    ``person`` identifies the photo. Gradio's ``ImageEditor`` 6.31 shows a layer that the server gives beside the photo.
    """
    size = canvas_size(photo)
    layer = Image.new("RGBA", size, "#e0218a")
    layer.putalpha(Image.fromarray(mask * np.uint8(255)).resize(size, Image.Resampling.NEAREST))
    shown = photo.resize(size, Image.Resampling.LANCZOS)
    return json.dumps({"person": person, "photo": _data_uri(shown, "JPEG"), "mask": _data_uri(layer, "PNG")})


def mask_of(canvas: object, person: str, photo: Image.Image) -> np.ndarray:
    """The mask on the canvas as uint8 [h, w] in {0, 1} of the upright RGB ``photo``: 1 where it is painted.

    Raises ``ValueError`` where the canvas has none of this ``person``, and for masks that ``mask_given`` refuses.
    """
    try:
        sent = json.loads(str(canvas))
        layer = open_picture(base64.b64decode(sent["mask"].partition(",")[2]), CANVAS_SIDE * CANVAS_SIDE)
        fits = sent["person"] == person and layer.size == canvas_size(photo)
    except (ValueError, KeyError, TypeError):  # what the page sends before there is a mask
        fits = False
    if not fits:
        raise ValueError("this photo has no mask yet: press “Make the mask”, then paint it as you like")
    painted = np.asarray(layer.convert("RGBA"))[..., 3] > 127
    try:
        return mask_given(photo, Image.fromarray(painted.view(np.uint8) * np.uint8(255)), None)
    except PictureError as error:
        raise ValueError(f"the mask cannot be used: {error}") from error


def _data_uri(picture: Image.Image, image_format: str) -> str:
    sink = io.BytesIO()
    picture.save(sink, image_format, quality=90)
    return f"data:image/{image_format.lower()};base64,{base64.b64encode(sink.getvalue()).decode('ascii')}"


def draw_examples(folder: Path) -> tuple[list[list[Any]], list[list[Any]]]:
    """Rows of ``gr.Examples``, drawn into ``folder``: people, and garments with their type. Always the same ones."""
    folder.mkdir(parents=True, exist_ok=True)
    people: list[list[Any]] = []
    garments: list[list[Any]] = []
    of_a_type = EXAMPLE_PEOPLE + EXAMPLE_GARMENTS
    for index in range(3 * of_a_type):
        cloth_type = 1 + index // of_a_type
        # The whole body from the front, as the small model knows people; the garments are other people's.
        spec = RowSpec(_EXAMPLE_SEED, index, index, 1, "full", cloth_type, cloth_type, studio=True)
        row = documented_row(spec, EXAMPLE_SIZE)
        is_person = index % of_a_type < EXAMPLE_PEOPLE
        path = folder / f"{'person' if is_person else 'garment'}-{index}.jpg"
        path.write_bytes(row["image" if is_person else "cloth"]["bytes"])
        if is_person:
            people.append([str(path)])
        else:
            garments.append([str(path), cloth_type])
    return people, garments


def build(page: TryOnPage, folder: Path, seed: int, max_upload_mb: int) -> gr.Blocks:
    """The page with its events, yet to be launched; ``folder`` is the one to draw the examples in."""
    gr.set_static_paths([folder])  # which Gradio does not copy
    people, garments = draw_examples(folder)
    with gr.Blocks(title="Try-on", analytics_enabled=False) as blocks:
        gr.Markdown(f"# Try a garment on\n\n{_about(page.choice)}", elem_id="head")
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
                with gr.Accordion("A second garment, over the first", open=False, elem_id="more"):
                    second = _upload("second")
                    about = "What it repaints is found when you press “Dress”"
                    second_type = gr.Radio(types, value=LOWER, label="Its type", info=about, elem_id="second-type")
            with gr.Column(min_width=300):
                gr.HTML("<h2>3 · What to repaint</h2>")
                cloth_type.render()
                template, script = ((_HERE / f"painter.{kind}").read_text(encoding="utf-8") for kind in ("html", "js"))
                canvas = gr.HTML(value="", html_template=template, js_on_load=script, elem_id="canvas")
                make = gr.Button("Make the mask", size="sm", elem_id="make")
        with gr.Row():
            with gr.Column(min_width=280):
                gr.HTML("<h2>4 · Dress</h2>")
                numbers = _numbers(page.choice, seed)
                run = gr.Button("Dress", variant="primary", elem_id="run")
                status = gr.Markdown("Look at the mask, then press “Dress”.", elem_id="status")
            results = [_result("Base"), _result("LoRA", visible=bool(page.choice.loras))]
        changes = [person.change, cloth_type.change, make.click]
        gr.on(changes, page.make_mask, [person, cloth_type], canvas, **_QUEUED)
        inputs = [person, garment, canvas, cloth_type, *numbers[:5], second, second_type, *numbers[5:]]
        run.click(page.dress, inputs, [status, *results], show_progress_on=results[0], **_QUEUED)
    return blocks


def _names(choice: ModelChoice) -> list[str]:
    """What the page calls the LoRAs: their folders, or their files where some lie in one folder."""
    folders = [lora.path.parent.name for lora in choice.loras]
    return folders if len(set(folders)) == len(folders) else [lora.path.stem for lora in choice.loras]


def _about(choice: ModelChoice) -> str:
    """What the page says of its models, in Markdown."""
    recipe = choice.recipe
    names = "` and `".join(_names(choice))
    lora = f" and LoRA `{names}` draw from the same noise" if choice.loras else ""
    about = f"Base `{Path(recipe.transformer).name}`{lora}. Drawn at {recipe.width}x{recipe.height}."
    if is_embedded(recipe.transformer):
        about += " This small model knows drawn people, and tops unless a LoRA taught it more; 1 step is best."
    if recipe.use_captions:
        about += " The LoRA was trained with captions: here it draws without one."
    return about


def _upload(name: str) -> gr.Image:
    """A field for a picture, handed on as the file that it is."""
    how: dict[str, Any] = {"sources": ["upload", "clipboard"], "type": "filepath", "image_mode": None}
    field = gr.Image(label=name, show_label=False, height=250, elem_id=name, **how)
    opened = field.preprocess
    # ``read_picture`` opens more than Gradio does, and says what is wrong. A subclass would make Gradio write a .pyi.
    vars(field)["preprocess"] = lambda sent: sent.path if sent is not None and sent.path else opened(sent)
    return field


def _numbers(choice: ModelChoice, seed: int) -> list[gr.components.Component]:
    """Seed, steps, guidance, LoRA scale, repaint and the scales of other LoRAs, as ``TryOnPage.dress`` takes them."""
    steps, guidance = choice.recipe.num_inference_steps, choice.recipe.guidance_scale
    labels = [f"Scale of {name}" for name in _names(choice)] if len(choice.loras) > 1 else ["LoRA scale"]
    numbers = [  # in the order in which the page shows them
        gr.Number(seed, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, elem_id="seed"),
        gr.Slider(1, max(MAX_STEPS, steps), value=steps, step=1, label="Steps"),
        gr.Slider(0, max(MAX_GUIDANCE, guidance), value=guidance, step=0.5, label="Guidance"),
    ]
    first, *others = [
        gr.Slider(
            min(0, scale),
            max(2, scale),
            value=scale,
            label=label,
            visible=bool(choice.loras),
            step=0.05 if round(scale / 0.05, 6).is_integer() else 0.005,  # a browser moves values onto the steps
        )
        for label, scale in zip(labels, choice.scales or (1.0,), strict=True)
    ]
    return [*numbers, first, gr.Checkbox(True, label="Keep the photo outside the mask", elem_id="repaint"), *others]


def _result(label: str, *, visible: bool = True) -> gr.Image:
    """A column with a picture that was drawn."""
    buttons: list[Any] = ["download", "fullscreen"]
    name = f"{label.lower()}-result"
    with gr.Column(min_width=280, visible=visible):
        return gr.Image(label=label, interactive=False, format="png", height=470, buttons=buttons, elem_id=name)

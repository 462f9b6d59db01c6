"""The page: what is on it, and what happens when somebody uses it."""

from __future__ import annotations

import html
import itertools
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from deepfashion_training.garment_types import FULL, LOWER, UPPER, parse_cloth_type
from deepfashion_training.images.pictures import PictureError
from deepfashion_training.inference import mask_painter as painter
from deepfashion_training.inference.choice import ModelChoice
from deepfashion_training.inference.page_examples import Example
from deepfashion_training.inference.page_jobs import MAX_SEED, MAX_STEPS, Order, Studio, read_number, why
from deepfashion_training.inference.result_files import upright
from deepfashion_training.inference.upload_store import Picked, Shelf, uploaded

#: Files that the upload fields offer to choose; whether one is a picture is found out on the server.
SUFFIXES = [".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"]
#: Seconds after which an upload or a result is deleted, and how often that is looked at.
KEEP, LOOK = 4 * 3600, 600
MAX_GUIDANCE = 100.0
#: Longer side of the picture that shows a chosen garment.
_PREVIEW = 640
_HERE = Path(__file__).parent
#: Every event that decodes pictures or uses a model waits for the one before it.
_QUEUED: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "model", "api_visibility": "private"}


def theme() -> gr.themes.Base:
    """Fonts of the reader's own system: none is loaded from anywhere."""
    font: list[Any] = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
    mono: list[Any] = ["ui-monospace", "monospace"]
    return gr.themes.Default(primary_hue=gr.themes.colors.pink, font=font, font_mono=mono)


def css() -> str:
    """The page's own style."""
    return (_HERE / "page.css").read_text(encoding="utf-8")


_NUMBERS = itertools.count()


def note(text: str, kind: str = "info") -> str:
    """A message that stays on the page; ``kind`` is ``info``, ``good`` or ``bad``. ``text`` is shown as it is.

    Each has its own number: Gradio would not show, nor a screen reader say, the same words a second time.
    """
    return f'<p class="{kind}" data-number="{next(_NUMBERS)}">{html.escape(text, quote=False)}</p>' if text else ""


def failed(error: Exception) -> str:
    """The message of a job that failed; what nobody expected is on the server's stderr with its traceback."""
    if not isinstance(error, ValueError):
        traceback.print_exception(error, file=sys.stderr)
    return note(why(error), "bad")


class Page:
    """What the page's events do. Each returns values for the fields that ``build`` names beside it."""

    def __init__(self, studio: Studio, folder: Path, people: Sequence[Example], garments: Sequence[Example]) -> None:
        self.studio = studio
        self.folder = folder  # where uploads lie
        self.shelf = Shelf()
        self.people = [(self.shelf.put(one.picked, keep=True), one) for one in people]
        self.garments = [(self.shelf.put(one.picked, keep=True), one) for one in garments]

    def upload_person(self, payload: object, cloth_type: object) -> tuple[Any, ...]:
        """Values of: upload field, note on the person, canvas, note on the mask."""
        return (None, *self._person(lambda: (None, uploaded(payload, self.folder, "person")), cloth_type))

    def pick_person(self, index: object, cloth_type: object) -> tuple[Any, ...]:
        """Values of: note on the person, canvas, note on the mask."""

        def example() -> tuple[str, Picked]:
            name, found = _at(self.people, index)
            return name, found.picked

        return self._person(example, cloth_type)

    def upload_garment(self, payload: object) -> tuple[Any, ...]:
        """Values of: upload field, note on the garment, its name, its picture."""
        try:
            picked = uploaded(payload, self.folder, "garment")
            shown = _preview(upright(picked.read("the garment")))
        except Exception as error:
            return None, failed(error), gr.skip(), gr.skip()
        return None, note(f"garment: {picked.name}"), self.shelf.put(picked), shown

    def pick_garment(self, index: object) -> tuple[Any, ...]:
        """Values of: note on the garment, its name, its picture, garment type."""
        try:
            name, example = _at(self.garments, index)
            shown = _preview(upright(example.picked.read("the garment")))
        except Exception as error:
            return failed(error), gr.skip(), gr.skip(), gr.skip()
        return note(f"garment: {example.picked.name}"), name, shown, example.cloth_type

    def make_mask(self, canvas: object, cloth_type: object, *, asked: bool) -> tuple[Any, ...]:
        """Values of: canvas, note on the mask. With ``asked`` off nobody is told that there is no person yet."""
        try:
            name = painter.person_of(canvas)
            if not name and not asked:
                return gr.skip(), ""
            photo = upright(self.shelf.get(name, "person").read("the person"))
            return self._masked(name, photo, cloth_type)
        except Exception as error:
            return gr.skip(), failed(error)

    def run(self, progress: Any, canvas: object, garment: object, cloth_type: object, *numbers: object) -> list[Any]:
        """Values of: note on the run, then picture and file of the base, picture and file of the LoRA.

        ``numbers`` are seed, steps, guidance, LoRA scale and repaint, as the browser sends them.
        """
        try:
            order = self.order(canvas, garment, cloth_type, *numbers)
            began = time.monotonic()
            progress(0, desc="starting")
            files = self.studio.draw(
                order, lambda done, steps: progress((done, steps), desc="base" if done <= order.steps else "LoRA")
            )
        except Exception as error:
            return [failed(error), None, _file(None), None, _file(None)]
        text = f"done in {time.monotonic() - began:.1f} s: seed {order.seed}, {order.steps} steps, guidance "
        text += f"{order.guidance_scale:g}" + (f", LoRA scale {order.lora_scale:g}" if "lora" in files else "")
        shown: list[Any] = [note(text, "good")]
        for name in ("base", "lora"):
            path = files.get(name)
            shown += [None if path is None else str(path), _file(path)]
        return shown

    def order(self, canvas: object, garment: object, cloth_type: object, *numbers: object) -> Order:
        """What ``run`` is asked for; ``ValueError`` says what is missing or cannot be."""
        person = self.shelf.get(painter.person_of(canvas), "person")
        worn = self.shelf.get(garment, "garment")
        mask = painter.mask_of(canvas, upright(person.read("the person")))
        seed, steps, guidance, scale, repaint = numbers
        low, high = scale_limits(self.studio.choice.lora_scale)
        return Order(
            person,
            worn,
            parse_cloth_type(cloth_type),
            mask,
            int(read_number(seed, "seed", 0, MAX_SEED, whole=True)),
            int(read_number(steps, "steps", 1, MAX_STEPS, whole=True)),
            read_number(guidance, "guidance", 0, MAX_GUIDANCE),
            read_number(scale, "LoRA scale", low, high),
            bool(repaint),
        )

    def _person(self, find: Callable[[], tuple[str | None, Picked]], cloth_type: object) -> tuple[Any, ...]:
        """Values of ``pick_person``; ``find`` gives a picture, and its name where it is on the shelf already."""
        try:
            known, picked = find()
            photo = upright(picked.read("the person"))
            name = known or self.shelf.put(picked)
            return note(f"person: {picked.name}, {photo.width}x{photo.height}"), *self._masked(name, photo, cloth_type)
        except Exception as error:
            return failed(error), gr.skip(), gr.skip()

    def _masked(self, name: str, photo: Image.Image, cloth_type: object) -> tuple[str, str]:
        """Values of canvas and note; a photo that the parser makes nothing of comes with an empty mask."""
        try:
            mask, text = self.studio.masked(photo, parse_cloth_type(cloth_type)), ""
        except PictureError as error:
            mask = np.zeros((photo.height, photo.width), np.uint8)
            text = note(f"no mask was made: {error}. You can paint it yourself.", "bad")
        return painter.to_browser(name, photo, mask), text


def _at(examples: Sequence[tuple[str, Example]], index: object) -> tuple[str, Example]:
    if not isinstance(index, int) or not 0 <= index < len(examples):
        raise ValueError(f"there is no example number {index!r}: load the page again")
    return examples[index]


def _preview(picture: Image.Image) -> Image.Image:
    shown = picture.copy()
    shown.thumbnail((_PREVIEW, _PREVIEW))
    return shown


def _file(path: Path | None) -> Any:
    return gr.update(value=None if path is None else str(path), interactive=path is not None)


def scale_limits(lora_scale: float) -> tuple[float, float]:
    """Smallest and largest LoRA scale that the page offers: 0 to 2, and the one of the command line."""
    return min(0.0, lora_scale), max(2.0, lora_scale)


@dataclass(frozen=True)
class _Person:
    """Fields of the first step."""

    file: gr.File
    note: gr.HTML
    examples: gr.Gallery


@dataclass(frozen=True)
class _Garment:
    """Fields of the second step; ``name`` is the garment's on the shelf."""

    file: gr.File
    note: gr.HTML
    name: gr.Textbox
    shown: gr.Image
    examples: gr.Gallery


@dataclass(frozen=True)
class _Mask:
    """Fields of the third step."""

    cloth_type: gr.Radio
    canvas: gr.HTML
    note: gr.HTML
    make: gr.Button


@dataclass(frozen=True)
class _Run:
    """Fields of the fourth step; ``numbers`` are in the order of ``Page.run``."""

    numbers: list[gr.components.Component]
    button: gr.Button
    note: gr.HTML


def build(page: Page, steps: int, seed: int, lines: Sequence[str], max_upload_mb: int) -> gr.Blocks:
    """The page with its events, yet to be launched; ``lines`` stand under its title."""
    blocks = gr.Blocks(title="Try-on", analytics_enabled=False, delete_cache=(LOOK, KEEP))
    with blocks:
        text = "".join(f"<p>{html.escape(line, quote=False)}</p>" for line in lines)
        gr.HTML(f"<h1>Try a garment on</h1>{text}", elem_id="head")
        with gr.Row():
            person = _person_step(page, max_upload_mb)
            garment = _garment_step(page, max_upload_mb)
            mask = _mask_step()
        with gr.Row():
            run = _run_step(page.studio.choice, steps, seed)
            results = _results(has_lora=page.studio.choice.lora is not None)
        _choosing_events(page, person, garment, mask)
        _mask_events(page, mask)
        _run_event(page, garment, mask, run, results)
    return blocks


def _person_step(page: Page, max_upload_mb: int) -> _Person:
    with gr.Column(min_width=280, elem_classes="step"):
        gr.HTML("<h2>1 · Person</h2>")
        return _Person(
            file=_upload("Photo of the whole person", "person-file", max_upload_mb),
            note=_note("person-note"),
            examples=_gallery([one for _, one in page.people], "people", 2),
        )


def _garment_step(page: Page, max_upload_mb: int) -> _Garment:
    with gr.Column(min_width=280, elem_classes="step"):
        gr.HTML("<h2>2 · Garment</h2>")
        return _Garment(
            file=_upload("Picture of the garment, best alone", "garment-file", max_upload_mb),
            note=_note("garment-note"),
            name=gr.Textbox(visible="hidden"),
            shown=gr.Image(
                interactive=False, format="png", height=190, show_label=False, buttons=[], elem_id="garment"
            ),
            examples=_gallery([one for _, one in page.garments], "garments", 3),
        )


def _mask_step() -> _Mask:
    with gr.Column(min_width=300, elem_classes="step"):
        gr.HTML("<h2>3 · What to repaint</h2>")
        names = [("Upper", UPPER), ("Lower", LOWER), ("Full body", FULL)]
        return _Mask(
            cloth_type=gr.Radio(names, value=UPPER, label="Garment type", elem_id="type"),
            canvas=gr.HTML(
                value="",
                html_template=(_HERE / "painter.html").read_text(encoding="utf-8"),
                js_on_load=(_HERE / "painter.js").read_text(encoding="utf-8"),
                elem_id="canvas",
            ),
            note=_note("mask-note"),
            make=gr.Button("Make the mask", size="sm", elem_id="make"),
        )


def _run_step(choice: ModelChoice, steps: int, seed: int) -> _Run:
    low, high = scale_limits(choice.lora_scale)
    with gr.Column(min_width=280, elem_classes="step"):
        gr.HTML("<h2>4 · Dress</h2>")
        with gr.Row():
            seed_field = gr.Number(seed, label="Seed", precision=0, minimum=0, min_width=90, elem_id="seed")
            steps_field = gr.Slider(1, MAX_STEPS, value=steps, step=1, label="Steps", min_width=150, elem_id="steps")
        guidance = gr.Slider(0, MAX_GUIDANCE, value=choice.recipe.guidance_scale, step=0.5, label="Guidance")
        has_lora = choice.lora is not None
        scale = gr.Slider(low, high, value=choice.lora_scale, step=0.05, label="LoRA scale", visible=has_lora)
        repaint = gr.Checkbox(True, label="Keep the photo outside the mask", elem_id="repaint")
        return _Run(
            numbers=[seed_field, steps_field, guidance, scale, repaint],
            button=gr.Button("Dress", variant="primary", elem_id="run"),
            note=_note("status", note("Choose a person and a garment, look at the mask, then press “Dress”.")),
        )


def _results(*, has_lora: bool) -> list[gr.components.Component]:
    """Picture and file of the base, picture and file of the LoRA."""
    fields = [*_result("Base", "base"), *_result("LoRA", "lora", visible=has_lora)]
    if not has_lora:
        with gr.Column(min_width=280):
            gr.HTML(note("No LoRA was given: start the page with --lora to see one here, beside the base."))
    return fields


def _choosing_events(page: Page, person: _Person, garment: _Garment, mask: _Mask) -> None:
    """What uploads and examples do."""
    of_person = [person.note, mask.canvas, mask.note]
    of_garment = [garment.note, garment.name, garment.shown]
    person.file.upload(
        page.upload_person, [person.file, mask.cloth_type], [person.file, *of_person], preprocess=False, **_QUEUED
    )
    person.examples.select(_indexed(page.pick_person), mask.cloth_type, of_person, preprocess=False, **_QUEUED)
    garment.file.upload(page.upload_garment, garment.file, [garment.file, *of_garment], preprocess=False, **_QUEUED)
    garment.examples.select(
        _indexed(page.pick_garment), None, [*of_garment, mask.cloth_type], preprocess=False, **_QUEUED
    )


def _mask_events(page: Page, mask: _Mask) -> None:
    fields = [mask.canvas, mask.cloth_type]
    how = {"inputs": fields, "outputs": [mask.canvas, mask.note], "preprocess": False, **_QUEUED}
    mask.make.click(lambda *values: page.make_mask(*values, asked=True), **how)
    mask.cloth_type.change(lambda *values: page.make_mask(*values, asked=False), **how)


def _run_event(page: Page, garment: _Garment, mask: _Mask, run: _Run, results: list[gr.components.Component]) -> None:
    ticking = gr.Progress()

    def dress(*values: Any, progress: gr.Progress = ticking) -> list[Any]:
        return page.run(progress, *values)

    run.button.click(
        dress,
        [mask.canvas, garment.name, mask.cloth_type, *run.numbers],
        [run.note, *results],
        preprocess=False,
        show_progress_on=[results[0]],
        **_QUEUED,
    )


def _indexed(function: Any) -> Any:
    """An event on a gallery that passes on which of its pictures was chosen."""

    def chosen(event: gr.SelectData, *values: Any) -> Any:
        return function(event.index, *values)

    # Gradio looks at the annotation itself, which is only a text in this file.
    chosen.__annotations__["event"] = gr.SelectData
    return chosen


def _upload(label: str, name: str, megabytes: int) -> gr.File:
    text = f"{label}, up to {megabytes} MB"
    gr.HTML(f"<p>{html.escape(text)}</p>", elem_classes="hint")  # the field's own label lies over its middle
    return gr.File(label=text, show_label=False, file_types=SUFFIXES, height=120, elem_id=name)


def _note(name: str, value: str = "") -> gr.HTML:
    template = '<div class="note" role="status" aria-live="polite">${value}</div>'
    return gr.HTML(value, html_template=template, elem_id=name, elem_classes="note-box")


def _gallery(examples: Sequence[Example], name: str, columns: int) -> gr.Gallery:
    label = "or pick one of these"
    gr.HTML(f"<p>{html.escape(label)}</p>", elem_classes="hint")
    return gr.Gallery(
        [(str(one.picked.path), one.label) for one in examples],
        label=label,
        show_label=False,
        columns=columns,
        height="auto",
        object_fit="contain",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id=name,
    )


def _result(label: str, name: str, *, visible: bool = True) -> tuple[gr.Image, gr.DownloadButton]:
    with gr.Column(min_width=280, visible=visible, elem_classes="result"):
        picture = gr.Image(
            label=label, interactive=False, format="png", height=470, buttons=["fullscreen"], elem_id=f"{name}-result"
        )
        file = gr.DownloadButton(f"Download: {label}", interactive=False, size="sm", elem_id=f"{name}-download")
    return picture, file

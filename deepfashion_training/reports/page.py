"""Pages to look at: one HTML file each that holds its style and its pictures, and asks no network for anything."""

from __future__ import annotations

import base64
import functools
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

#: Pictures are shrunk to this height: 700 of them stay under 10 MB, and a phone shows no more.
PICTURE_HEIGHT = 192
_JPEG_QUALITY = 85
#: Modes of masks and label maps: stored without loss.
_EXACT_MODES = ("1", "L", "P")


def in_code(text: str) -> str:
    """``text`` for a Markdown code span in a table, which nothing in it ends: cards are no HTML and escape nothing."""
    return "".join(sign for sign in text if sign.isprintable() and sign not in "`|")


def picture_uri(picture: Image.Image, height: int = PICTURE_HEIGHT) -> Markup:
    """``picture`` as a ``data:`` URI, at most ``height`` pixels high: PNG for masks (mode 1, L, P), else JPEG."""
    exact = picture.mode in _EXACT_MODES
    if picture.height > height:
        size = (max(1, round(picture.width * height / picture.height)), height)
        picture = picture.resize(size, Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    if exact:
        picture.save(sink, "PNG", optimize=True)
    else:
        picture.convert("RGB").save(sink, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    text = base64.b64encode(sink.getvalue()).decode("ascii")
    return Markup("data:image/{};base64,{}").format("png" if exact else "jpeg", text)


def render_page(template: str, **values: Any) -> str:
    """The text of ``reports/templates/<template>`` with ``values`` in it.

    Every string is escaped unless it is ``Markup``. Templates extend ``page.html.jinja``, which has the title, the
    style and the blocks.
    """
    return _environment().get_template(template).render(**values)


def write_page(file: Path, template: str, **values: Any) -> None:
    """Render ``template`` into ``file``, which appears only once it is complete."""
    text = render_page(template, **values)
    with _drafted(file) as draft:
        draft.write_text(text, encoding="utf-8")


@functools.lru_cache(maxsize=1)
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("deepfashion_training.reports"),
        # Not by file name: the templates end in .jinja, which jinja2.select_autoescape does not know.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "percent": _percent, "words": words}
    return environment


def _count(value: int) -> str:
    """A whole number with commas between its thousands."""
    return f"{value:,}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}%"


def words(name: str) -> str:
    """A name of the code as people write it: ``cross_view`` -> ``cross view``."""
    return name.replace("_", " ")


@contextmanager
def _drafted(file: Path) -> Iterator[Path]:
    """A path beside ``file`` to write to; it becomes ``file`` at the end, and goes after an error."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        yield draft
        draft.replace(file)
    finally:
        draft.unlink(missing_ok=True)

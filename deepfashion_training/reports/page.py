"""Pages to look at: one HTML file each that holds its style and its pictures, and asks no network for anything."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from training_run.atomic import write_file

#: Pictures are shrunk to this height: 700 of them stay under 10 MB, and a phone shows no more.
PICTURE_HEIGHT = 192


def in_code(text: str) -> str:
    """``text`` for a Markdown code span in a table, which nothing in it ends: cards are no HTML and escape nothing."""
    return "".join(sign for sign in text if sign.isprintable() and sign not in "`|")


def picture_uri(picture: Image.Image) -> Markup:
    """``picture`` as a ``data:`` URI, no higher than ``PICTURE_HEIGHT``: PNG for masks (mode 1, L, P), else JPEG."""
    exact = picture.mode in ("1", "L", "P")
    if picture.height > PICTURE_HEIGHT:
        size = (max(1, round(picture.width * PICTURE_HEIGHT / picture.height)), PICTURE_HEIGHT)
        picture = picture.resize(size, Image.Resampling.NEAREST if exact else Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    if exact:
        picture.save(sink, "PNG", optimize=True)
    else:
        picture.convert("RGB").save(sink, "JPEG", quality=85, optimize=True)
    text = base64.b64encode(sink.getvalue()).decode("ascii")
    return Markup("data:image/{};base64,{}").format("png" if exact else "jpeg", text)


def write_page(file: Path, template: str, **values: Any) -> None:
    """Render ``reports/templates/<template>`` with ``values`` into ``file``, complete or not at all.

    Every string is escaped unless it is ``Markup``. Templates extend ``page.html.jinja``, which has the title, the
    style and the block ``content``.
    """
    environment = Environment(
        loader=PackageLoader("deepfashion_training.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda value: f"{value:,}",
        "percent": lambda value: f"{100 * value:.1f}%",
        "words": words,
    }
    write_file(file, environment.get_template(template).render(**values))


def words(name: str) -> str:
    """A name of the code as people write it: ``cross_view`` -> ``cross view``."""
    return name.replace("_", " ")

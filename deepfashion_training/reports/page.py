"""Pages and cards from ``templates/``: a page holds its style and its pictures, and asks no network for anything."""

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


def write_page(file: Path, template: str, **values: Any) -> None:
    """Render ``templates/<template>`` with ``values`` into ``file``, complete or not at all.

    In HTML every string is escaped unless it is ``Markup``; in Markdown the filter ``in_code`` is for others' strings.
    """
    environment = Environment(
        loader=PackageLoader("deepfashion_training.reports"),
        autoescape=template.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": "{:,}".format, "percent": "{:.1%}".format, "in_code": in_code}
    write_file(file, environment.get_template(template).render(**values))


def in_code(text: str) -> str:
    """``text`` for a Markdown code span in a table, which nothing in it ends."""
    return "".join(sign for sign in text if sign.isprintable() and sign not in "`|")


def picture_uri(picture: Image.Image) -> Markup:
    """``picture`` as the ``data:`` URI of a JPEG, no higher than ``PICTURE_HEIGHT``."""
    if picture.height > PICTURE_HEIGHT:
        size = (max(1, round(picture.width * PICTURE_HEIGHT / picture.height)), PICTURE_HEIGHT)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    sink = io.BytesIO()
    picture.convert("RGB").save(sink, "JPEG", quality=85, optimize=True)
    return Markup("data:image/jpeg;base64,{}").format(base64.b64encode(sink.getvalue()).decode("ascii"))

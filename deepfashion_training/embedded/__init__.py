"""A small FLUX-Fill and a drawn wardrobe, for runs that need no network, no GPU and no account."""

import json
from pathlib import Path

from training_run.hub import local_path, transformer_in

#: A FLUX-Fill pipeline folder of a few MB, which puts on tops only.
TINY_FLUX_FILL = Path(__file__).parent / "tiny_flux_fill"
#: A human parser for drawn people.
DRAWN_PARSER = Path(__file__).parent / "drawn_parser"


def is_embedded(transformer: str) -> bool:
    """Whether a transformer's folder holds the small model, of this checkout or of another one."""
    ours, given = (transformer_in(local_path(name)) / "config.json" for name in (TINY_FLUX_FILL, transformer))
    return given.is_file() and json.loads(given.read_text("utf-8")) == json.loads(ours.read_text("utf-8"))

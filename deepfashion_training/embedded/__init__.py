"""A small FLUX-Fill and a drawn wardrobe, for runs that need no network, no GPU and no account."""

from pathlib import Path

#: A FLUX-Fill pipeline folder of a few MB, which knows tops only.
TINY_FLUX_FILL = Path(__file__).parent / "tiny_flux_fill"
#: A human parser for drawn people.
DRAWN_PARSER = Path(__file__).parent / "drawn_parser"

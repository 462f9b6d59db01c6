"""Garment/person pairs and a training wrapper that teach FLUX-Fill try-on lower-body and full-body garments."""

__version__ = "0.2.0"

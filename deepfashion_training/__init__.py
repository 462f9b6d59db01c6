"""Teach CatVTON-Flux lower-body and full-body garments by LoRA fine-tuning on garment/person pairs.

The root of this package holds the commands, one file each; the folders hold what they are made of.
"""

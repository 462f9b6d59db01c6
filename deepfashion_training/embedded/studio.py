"""Backgrounds to stand in front of: studio tones, a floor, now and then a window, a plant or a painted wall."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from deepfashion_training.embedded.body import Colour
from deepfashion_training.embedded.patterns import shaded
from deepfashion_training.embedded.shapes import disc

WALLS: tuple[Colour, ...] = (
    (236, 234, 230), (224, 226, 230), (242, 238, 230), (214, 220, 222), (232, 222, 212), (206, 214, 206),
    (228, 214, 214), (202, 206, 218), (240, 232, 216), (192, 196, 200), (218, 228, 234), (186, 180, 172),
    (246, 246, 246), (212, 200, 188), (176, 190, 192), (226, 232, 220),
)  # fmt: skip


def _gradient(size: tuple[int, int], top: Colour, bottom: Colour) -> Image.Image:
    rows = np.linspace(np.array(top, float), np.array(bottom, float), size[1]).round().astype(np.uint8)
    return Image.fromarray(rows[:, None]).resize(size, Image.Resampling.NEAREST)


def background(rng: np.random.Generator, size: tuple[int, int], factor: int, soles: float) -> Image.Image:
    """An RGB picture of ``factor`` times ``size`` = (height, width); ``soles`` is the pixel row of the feet (1x)."""
    height, width = size[0] * factor, size[1] * factor
    wall = WALLS[rng.integers(len(WALLS))]
    wall = tuple(int(np.clip(channel + rng.integers(-8, 9), 0, 255)) for channel in wall)  # type: ignore[assignment]
    image = _gradient(
        (width, height), shaded(wall, float(rng.uniform(1.0, 1.25))), shaded(wall, float(rng.uniform(0.90, 0.98)))
    )
    draw = ImageDraw.Draw(image)
    horizon = int(min(0.93 * height, soles * factor - height * rng.uniform(0.05, 0.13)))
    prop = str(
        rng.choice(["none", "window", "plant", "panel", "stripe", "arch"], p=[0.44, 0.12, 0.12, 0.12, 0.10, 0.10])
    )
    floor = bool(rng.random() < 0.62) or prop in ("window", "plant")
    side = -1 if rng.random() < 0.5 else 1
    middle = width / 2 + side * (0.25 * height if width > 0.9 * height else 0.30 * width) * rng.uniform(0.9, 1.2)
    unit = height / 100
    tone = shaded(wall, 0.90)
    if prop == "panel":
        edge = sorted((middle, middle + side * width))
        draw.rectangle((edge[0], 0, edge[1], height), fill=shaded(wall, 0.93))
    elif prop == "stripe":
        y = height * rng.uniform(0.25, 0.55)
        draw.rectangle((0, y, width, y + 7 * unit), fill=tone)
    elif prop == "arch":
        draw.ellipse((width / 2 - 34 * unit, 6 * unit, width / 2 + 34 * unit, 74 * unit), fill=shaded(wall, 0.94))
        draw.rectangle((width / 2 - 34 * unit, 40 * unit, width / 2 + 34 * unit, height), fill=shaded(wall, 0.94))
    elif prop == "window":
        x, y = middle, 10 * unit
        draw.rectangle((x - 13 * unit, y, x + 13 * unit, y + 36 * unit), fill=shaded(wall, 1.7))
        draw.rectangle((x - 11.6 * unit, y + 1.4 * unit, x + 11.6 * unit, y + 34.6 * unit), fill=(214, 230, 240))
        draw.line((x, y, x, y + 36 * unit), fill=shaded(wall, 1.7), width=max(1, round(1.2 * unit)))
        draw.line(
            (x - 13 * unit, y + 18 * unit, x + 13 * unit, y + 18 * unit),
            fill=shaded(wall, 1.7),
            width=max(1, round(1.2 * unit)),
        )
    if floor:
        floor_tone = shaded(wall, float(rng.uniform(0.80, 0.90)))
        image.paste(_gradient((width, height - horizon), floor_tone, shaded(floor_tone, 1.08)), (0, horizon))
        draw.line((0, horizon, width, horizon), fill=shaded(wall, 0.78), width=max(1, round(0.35 * unit)))
    if prop == "plant":
        foot = min(height, horizon + 4 * unit)
        green: Colour = (104, 138, 110) if rng.random() < 0.5 else (132, 152, 112)
        for lean in np.linspace(-1, 1, 7):
            leaf = disc((0, -11 * unit), 2.3 * unit, 11 * unit, 18)
            angle = 0.62 * lean
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            shape = leaf @ turn.T + (middle, foot - 8 * unit)
            draw.polygon(shape.ravel().tolist(), fill=shaded(green, 1.0 + 0.12 * abs(lean)))
        draw.polygon(
            (
                middle - 5 * unit,
                foot - 9 * unit,
                middle + 5 * unit,
                foot - 9 * unit,
                middle + 3.8 * unit,
                foot,
                middle - 3.8 * unit,
                foot,
            ),
            fill=(190, 142, 112),
        )
    return image

"""Backgrounds to stand in front of: studio tones, a floor, now and then a window, a plant or a painted wall."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from deepfashion_training.embedded.body import Body
from deepfashion_training.embedded.painting import Colour, Points, disc, points, shaded

WALLS: tuple[Colour, ...] = (
    (236, 234, 230), (224, 226, 230), (242, 238, 230), (214, 220, 222), (232, 222, 212), (206, 214, 206),
    (228, 214, 214), (202, 206, 218), (240, 232, 216), (192, 196, 200), (218, 228, 234), (186, 180, 172),
    (246, 246, 246), (212, 200, 188), (176, 190, 192), (226, 232, 220),
)  # fmt: skip


def _gradient(size: tuple[int, int], top: Colour, bottom: Colour) -> Image.Image:
    rows = np.linspace(np.array(top, float), np.array(bottom, float), size[1]).round().astype(np.uint8)
    return Image.fromarray(rows[:, None]).resize(size, Image.Resampling.NEAREST)


def _fill(image: Image.Image, shape: Points, colour: Colour) -> None:
    """A polygon in pixels with smooth edges."""
    left, top = np.floor(shape.min(axis=0)).astype(int).tolist()
    right, bottom = np.ceil(shape.max(axis=0)).astype(int).tolist()
    mask = Image.new("L", (2 * (right - left), 2 * (bottom - top)), 0)
    ImageDraw.Draw(mask).polygon(((shape - np.array([left, top])) * 2).ravel().tolist(), fill=255)
    image.paste(colour, (left, top), mask.reduce(2))


def background(rng: np.random.Generator, size: tuple[int, int], soles: float, bare: bool = False) -> Image.Image:
    """An RGB picture of ``size`` = (height, width); ``soles`` is the pixel row that the feet stand on.

    A ``bare`` studio has a wall and no more: no floor that ends, nothing that stands or hangs there.
    """
    height, width = size
    red, green, blue = (np.array(WALLS[rng.integers(len(WALLS))]) + rng.integers(-8, 9, 3)).clip(0, 255).tolist()
    wall: Colour = (red, green, blue)
    light, dark = shaded(wall, float(rng.uniform(1.0, 1.25))), shaded(wall, float(rng.uniform(0.90, 0.98)))
    image = _gradient((width, height), light, dark)
    if bare:
        return image
    draw = ImageDraw.Draw(image)
    horizon = int(min(0.93 * height, soles - height * rng.uniform(0.05, 0.13)))
    props = ("none", "window", "plant", "panel", "stripe", "arch")
    prop = str(rng.choice(props, p=(0.44, 0.12, 0.12, 0.12, 0.10, 0.10)))
    side = -1 if rng.random() < 0.5 else 1
    middle = width / 2 + side * (0.25 * height if width > 0.9 * height else 0.30 * width) * rng.uniform(0.9, 1.2)
    unit = height / 100
    if prop == "panel":
        draw.rectangle((min(middle, middle + side * width), 0, max(middle, middle + side * width), height),
                       fill=shaded(wall, 0.93))  # fmt: skip
    elif prop == "stripe":
        y = height * rng.uniform(0.25, 0.55)
        draw.rectangle((0, y, width, y + 7 * unit), fill=shaded(wall, 0.90))
    elif prop == "arch":
        bow = disc((width / 2, 40 * unit), 34 * unit, count=72)
        foot = points((width / 2 - 34 * unit, height), (width / 2 + 34 * unit, height))
        _fill(image, np.concatenate([bow[36:], bow[:1], foot[::-1]]), shaded(wall, 0.94))
    elif prop == "window":
        x, y, frame = middle, 10 * unit, shaded(wall, 1.7)
        draw.rectangle((x - 13 * unit, y, x + 13 * unit, y + 36 * unit), fill=frame)
        draw.rectangle((x - 11.6 * unit, y + 1.4 * unit, x + 11.6 * unit, y + 34.6 * unit), fill=(214, 230, 240))
        bar = max(1, round(1.2 * unit))
        draw.line((x, y, x, y + 36 * unit), fill=frame, width=bar)
        draw.line((x - 13 * unit, y + 18 * unit, x + 13 * unit, y + 18 * unit), fill=frame, width=bar)
    if prop in ("window", "plant") or rng.random() < 0.62:
        floor = shaded(wall, float(rng.uniform(0.80, 0.90)))
        image.paste(_gradient((width, height - horizon), floor, shaded(floor, 1.08)), (0, horizon))
        draw.line((0, horizon, width, horizon), fill=shaded(wall, 0.78), width=max(1, round(0.35 * unit)))
    if prop == "plant":
        foot_y = min(height, horizon + 4 * unit)
        leaf_green: Colour = (104, 138, 110) if rng.random() < 0.5 else (132, 152, 112)
        for lean in np.linspace(-1, 1, 7).tolist():
            cos, sin = np.cos(0.62 * lean), np.sin(0.62 * lean)
            leaf = disc((0, -11 * unit), 2.3 * unit, 11 * unit, 18) @ np.array([[cos, sin], [-sin, cos]])
            _fill(image, leaf + np.array([middle, foot_y - 8 * unit]), shaded(leaf_green, 1.0 + 0.12 * abs(lean)))
        pot = points((-5, -9), (5, -9), (3.8, 0), (-3.8, 0)) * unit + np.array([middle, foot_y])
        _fill(image, pot, (190, 142, 112))
    return image


def floor_shadow(photo: Image.Image, body: Body, scale: float, origin: tuple[float, float]) -> None:
    """A soft shadow under the feet."""
    left, right = (body.project(body.leg(side)[2])[0] for side in (1, -1))
    x = (left + right) / 2 * scale + origin[0]
    y = 0.990 * scale + origin[1]
    if y > photo.height + 0.02 * scale:
        return
    half = (abs(left - right) / 2 + 0.09) * scale
    box = (int(x - half * 1.5), int(y - 0.05 * scale), int(x + half * 1.7), int(y + 0.05 * scale))
    wide, high = max(2, (box[2] - box[0]) // 3), max(2, (box[3] - box[1]) // 3)
    shadow = Image.new("L", (wide, high), 0)
    ImageDraw.Draw(shadow).ellipse((wide * 0.2, high * 0.3, wide * 0.8, high * 0.7), fill=92)
    shadow = shadow.filter(ImageFilter.GaussianBlur(high * 0.12)).resize((box[2] - box[0], box[3] - box[1]))
    photo.paste((40, 38, 44), box[:2], shadow)

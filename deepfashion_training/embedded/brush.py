"""Paints pieces of a figure, back to front, into a photo and an exact map of what is where.

Shapes are drawn at a multiple of the picture's size and averaged down, so that photo edges are smooth; the map takes
the middle sample of each pixel, so that its labels stay whole numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from deepfashion_training.embedded.body import Colour
from deepfashion_training.embedded.patterns import TEXTURE_HALF
from deepfashion_training.embedded.shapes import Points

LabelMap = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """How cloth lies on one polygon: the texture point ``cloth`` at picture point ``at``, both in body units.

    ``turn`` is the angle in radians from picture to cloth axes, ``squeeze`` how much narrower the cloth looks.
    """

    at: tuple[float, float]
    cloth: tuple[float, float]
    turn: float = 0.0
    squeeze: float = 1.0


@dataclass(frozen=True)
class Cloth:
    """A texture image whose first row is at body height ``top``, ``scale`` pixels to a body height."""

    image: Image.Image
    top: float
    scale: float


@dataclass(frozen=True)
class Detail:
    """A small shape drawn on a piece once it is painted: filled, or a line of ``width`` body units."""

    shape: Points
    colour: Colour
    width: float = 0.0  # 0 fills


@dataclass
class Piece:
    """One part of the figure: a union of polygons with one label."""

    name: str
    label: int
    shapes: list[Points]
    colour: Colour
    cloth: Cloth | None = None
    frames: list[Frame] = field(default_factory=list)  # one per shape where there is cloth
    folds: list[Points] = field(default_factory=list)
    details: list[Detail] = field(default_factory=list)
    relief: float = 0.010  # width of the shadow on the side away from the light, body units
    group: str = ""  # no line is drawn between neighbours of one group


@dataclass(frozen=True)
class Window:
    """The part of a picture that a figure fills, and where body units lie in it.

    ``left``, ``top``, ``width``, ``height`` are pixels of the picture, ``scale`` pixels to a body height,
    ``origin`` the pixel (x, y) of body point (0, 0) in the window, ``factor`` the samples per pixel and axis.
    """

    left: int
    top: int
    width: int
    height: int
    scale: float
    origin: tuple[float, float]
    factor: int

    @classmethod
    def around(
        cls, pieces: list[Piece], size: tuple[int, int], scale: float, origin: tuple[float, float], factor: int
    ) -> Window:
        """The window that holds all of ``pieces`` and their soft edges, within ``size`` (height, width)."""
        corners = np.concatenate([shape for piece in pieces for shape in piece.shapes]) * scale + origin
        margin = 0.025 * scale + 2
        left, top = (max(0, int(value - margin)) for value in corners.min(axis=0))
        right, bottom = (int(value + margin) for value in corners.max(axis=0))
        right, bottom = max(left + 1, min(right, size[1])), max(top + 1, min(bottom, size[0]))
        moved = (origin[0] - left, origin[1] - top)
        return cls(left, top, right - left, bottom - top, scale, moved, factor)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in the picture."""
        return self.left, self.top, self.left + self.width, self.top + self.height

    @property
    def large(self) -> tuple[int, int]:
        """Width and height in samples."""
        return self.width * self.factor, self.height * self.factor

    def sample(self, image: Image.Image) -> Image.Image:
        """The middle sample of each pixel of an image in samples."""
        # Scaling down by nearest neighbour takes exactly that one.
        return image.resize((self.width, self.height), Image.Resampling.NEAREST)

    def spread(self, image: Image.Image, size: tuple[int, int]) -> LabelMap:
        """An image of the window as uint8 [H, W] of the whole picture, 0 outside."""
        whole = np.zeros(size, np.uint8)
        whole[self.top : self.top + self.height, self.left : self.left + self.width] = np.asarray(image)
        return whole


class Canvas:
    """A window on which pieces in body units are painted, over the part of ``ground`` (RGB) that it covers."""

    def __init__(self, window: Window, ground: Image.Image) -> None:
        self.window = window
        self.height, self.width, self.factor, self.scale = window.height, window.width, window.factor, window.scale
        self.origin = np.array(window.origin)
        self.outlined = ground.height > 168
        self.colours = ground.crop(window.box).resize(window.large, Image.Resampling.NEAREST)
        self.ids = Image.new("L", window.large, 0)
        self.shade = Image.new("L", (self.width, self.height), 255)
        self._draw = ImageDraw.Draw(self.colours)
        self._draw_ids = ImageDraw.Draw(self.ids)
        self.names: list[str] = ["background"]
        self.labels: list[int] = [0]
        self._groups: list[int] = [0]
        self._group_ids: dict[str, int] = {}

    def paint(self, piece: Piece) -> None:
        """Paint a piece over everything painted so far."""
        number = len(self.names)
        self.names.append(piece.name)
        self.labels.append(piece.label)
        self._groups.append(self._group_ids.setdefault(piece.group or piece.name, len(self._group_ids) + 1))
        placed = [shape * self.scale + self.origin for shape in piece.shapes]
        for index, shape in enumerate(placed):
            corners = (shape * self.factor).ravel().tolist()
            self._draw_ids.polygon(corners, fill=number)
            if piece.cloth is None:
                self._draw.polygon(corners, fill=piece.colour)
            else:
                self._lay(piece.cloth, piece.frames[index], corners)
        self._shade(piece, placed)
        for detail in piece.details:
            corners = ((detail.shape * self.scale + self.origin) * self.factor).ravel().tolist()
            if detail.width:
                wide = max(1, round(detail.width * self.scale * self.factor))
                self._draw.line(corners, fill=detail.colour, width=wide, joint="curve")
            else:
                self._draw.polygon(corners, fill=detail.colour)

    def _lay(self, cloth: Cloth, frame: Frame, corners: list[float]) -> None:
        """Fill one polygon with cloth."""
        xs, ys = corners[0::2], corners[1::2]
        left, top = max(0, int(min(xs))), max(0, int(min(ys)))
        right = min(self.colours.width, int(max(xs)) + 2)
        bottom = min(self.colours.height, int(max(ys)) + 2)
        if right <= left or bottom <= top:
            return
        mask = Image.new("1", (right - left, bottom - top), 0)
        moved = (np.array(corners).reshape(-1, 2) - (left, top)).ravel().tolist()
        ImageDraw.Draw(mask).polygon(moved, fill=1)
        # Pixel of the box -> body units on the picture -> body units on the cloth -> pixel of the texture.
        unit = 1.0 / (self.scale * self.factor)
        cos, sin = np.cos(frame.turn), np.sin(frame.turn)
        x0 = (left - self.origin[0] * self.factor) * unit - frame.at[0]
        y0 = (top - self.origin[1] * self.factor) * unit - frame.at[1]
        a, b = cos / frame.squeeze, sin / frame.squeeze
        c = a * x0 + b * y0 + frame.cloth[0] + TEXTURE_HALF
        d, e = -sin, cos
        f = d * x0 + e * y0 + frame.cloth[1] - cloth.top
        s = cloth.scale
        matrix = (a * unit * s, b * unit * s, c * s, d * unit * s, e * unit * s, f * s)
        filled = cloth.image.transform(mask.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
        self.colours.paste(filled, (left, top), mask)

    def _shade(self, piece: Piece, placed: list[Points]) -> None:
        """Light from the upper left: a soft shadow on the far side and along the folds."""
        corners = np.concatenate(placed)
        left, top = (max(0, int(value)) for value in corners.min(axis=0).tolist())
        right, bottom = (int(value) + 2 for value in corners.max(axis=0).tolist())
        right, bottom = min(right, self.width), min(bottom, self.height)
        if right <= left or bottom <= top:
            return
        box, corner = (right - left, bottom - top), np.array([left, top])
        mask, light = Image.new("1", box, 0), Image.new("L", box, 214)
        on_mask, on_light = ImageDraw.Draw(mask), ImageDraw.Draw(light)
        aside = corner + np.array([1.0, 0.25]) * (piece.relief * self.scale)
        for shape in placed:
            on_mask.polygon((shape - corner).ravel().tolist(), fill=1)
            on_light.polygon((shape - aside).ravel().tolist(), fill=255)
        for fold in piece.folds:
            line = (fold * self.scale + self.origin - corner).ravel().tolist()
            on_light.line(line, fill=216, width=max(1, round(0.006 * self.scale)))
        self.shade.paste(light, (left, top), mask)

    def _edges(self) -> Image.Image:
        """White where pieces of different groups meet, at the picture's size."""
        groups = np.asarray(self.ids.point(_table(self._groups)))
        edge = np.zeros(groups.shape, bool)
        down, across = groups[1:] != groups[:-1], groups[:, 1:] != groups[:, :-1]
        edge[1:] |= down
        edge[:-1] |= down
        edge[:, 1:] |= across
        edge[:, :-1] |= across
        return Image.fromarray(edge.view(np.uint8) * np.uint8(255)).reduce(self.factor)

    def finish(self) -> Image.Image:
        """The window of the photo, shaded and outlined: RGB at the picture's size.

        Small pictures have no outlines: a line of one pixel would be a tenth of a sleeve.
        """
        soft = self.shade.filter(ImageFilter.GaussianBlur(0.0055 * self.scale))
        edges = self._edges() if self.outlined else Image.new("L", (self.width, self.height), 0)
        figure = self.ids.point([0, *[255] * 255]).reduce(self.factor)
        near = edges.filter(ImageFilter.BoxBlur(0.010 * self.scale))
        near = near.point([255 - min(60, value * 3 // 5) for value in range(256)])
        strength = 0.46 if self.scale > 200 else 0.38
        lines = edges.point([round(255 - value * strength) for value in range(256)])
        # Shadows end where the figure does: the wall behind it and the white of a product shot stay clean.
        shadows = ImageChops.lighter(ImageChops.multiply(soft, near), ImageChops.invert(figure))
        light = ImageChops.multiply(shadows, lines)
        return ImageChops.multiply(self.colours.reduce(self.factor), Image.merge("RGB", (light, light, light)))

    def label_image(self, **instead: int) -> Image.Image:
        """Label of the piece that shows at each pixel of the window; ``instead`` gives labels by piece name."""
        labels = [instead.get(name, label) for name, label in zip(self.names, self.labels, strict=True)]
        return self.window.sample(self.ids).point(_table(labels))

    def figure(self) -> Image.Image:
        """255 wherever a piece shows in the window."""
        return self.window.sample(self.ids).point([0, *[255] * 255])


def _table(values: list[int]) -> list[int]:
    return [*values, *[0] * (256 - len(values))]


def silhouettes(shapes: list[tuple[Points, int]], window: Window) -> Image.Image:
    """Shapes in body units filled with their values in painter's order, one sample per pixel of the window."""
    image = Image.new("L", window.large, 0)
    draw = ImageDraw.Draw(image)
    for shape, value in shapes:
        draw.polygon(((shape * window.scale + window.origin) * window.factor).ravel().tolist(), fill=value)
    return window.sample(image)

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


class Canvas:
    """A picture of ``size`` = (height, width) pixels on which pieces in body units are painted.

    ``scale`` is pixels per body height, ``origin`` the pixel (x, y) of body point (0, 0), ``ground`` the background
    at ``factor`` times the size.
    """

    def __init__(
        self,
        size: tuple[int, int],
        scale: float,
        origin: tuple[float, float],
        factor: int,
        ground: Image.Image | None = None,
    ) -> None:
        self.height, self.width = size
        self.factor, self.scale, self.origin = factor, float(scale), np.array(origin)
        big = (self.width * factor, self.height * factor)
        self.colours = ground or Image.new("RGB", big, (255, 255, 255))
        self.ids = Image.new("L", big, 0)
        self.shade = Image.new("L", (self.width, self.height), 255)
        self._draw = ImageDraw.Draw(self.colours)
        self._draw_ids = ImageDraw.Draw(self.ids)
        self.names: list[str] = ["background"]
        self.labels: list[int] = [0]
        self._groups: list[int] = [0]
        self._group_ids: dict[str, int] = {}

    def place(self, shape: Points, factor: float) -> list[float]:
        """Flat list of pixel coordinates of a shape in body units."""
        placed: list[float] = ((shape * self.scale + self.origin) * factor).ravel().tolist()
        return placed

    def paint(self, piece: Piece) -> None:
        """Paint a piece over everything painted so far."""
        number = len(self.names)
        self.names.append(piece.name)
        self.labels.append(piece.label)
        self._groups.append(self._group_ids.setdefault(piece.group or piece.name, len(self._group_ids) + 1))
        for index, shape in enumerate(piece.shapes):
            corners = self.place(shape, self.factor)
            self._draw_ids.polygon(corners, fill=number)
            if piece.cloth is None:
                self._draw.polygon(corners, fill=piece.colour)
            else:
                self._lay(piece.cloth, piece.frames[index], corners)
        self._shade(piece)
        for detail in piece.details:
            corners = self.place(detail.shape, self.factor)
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

    def _shade(self, piece: Piece) -> None:
        """Light from the upper left: a soft shadow on the far side and along the folds."""
        placed = [np.array(self.place(shape, 1)).reshape(-1, 2) for shape in piece.shapes]
        corners = np.concatenate(placed)
        left, top = np.maximum(np.floor(corners.min(axis=0)).astype(int), 0)
        right, bottom = np.ceil(corners.max(axis=0)).astype(int) + 1
        right, bottom = min(right, self.width), min(bottom, self.height)
        if right <= left or bottom <= top:
            return
        box = (int(right - left), int(bottom - top))
        mask, light = Image.new("1", box, 0), Image.new("L", box, 214)
        on_mask, on_light = ImageDraw.Draw(mask), ImageDraw.Draw(light)
        aside = np.array([left + piece.relief * self.scale, top + 0.25 * piece.relief * self.scale])
        for shape in placed:
            on_mask.polygon((shape - (left, top)).ravel().tolist(), fill=1)
            on_light.polygon((shape - aside).ravel().tolist(), fill=255)
        for fold in piece.folds:
            line = (np.array(self.place(fold, 1)).reshape(-1, 2) - (left, top)).ravel().tolist()
            on_light.line(line, fill=216, width=max(1, round(0.006 * self.scale)))
        self.shade.paste(light, (int(left), int(top)), mask)

    def _edges(self, box: tuple[int, int, int, int]) -> Image.Image:
        """White where pieces of different groups meet inside a box of the large map, at the picture's size."""
        groups = np.asarray(self.ids.crop(box).point([*self._groups, *[0] * (256 - len(self._groups))]))
        edge = np.zeros(groups.shape, bool)
        down, across = groups[1:] != groups[:-1], groups[:, 1:] != groups[:, :-1]
        edge[1:] |= down
        edge[:-1] |= down
        edge[:, 1:] |= across
        edge[:, :-1] |= across
        return Image.fromarray(edge.view(np.uint8) * np.uint8(255)).reduce(self.factor)

    def finish(self) -> Image.Image:
        """The photo, shaded and outlined: RGB at the picture's size."""
        photo = self.colours.reduce(self.factor)
        found = self.ids.getbbox()
        if found is None:
            return photo
        margin, factor = round(0.02 * self.scale) + 2, self.factor
        box = (
            max(0, found[0] // factor - margin), max(0, found[1] // factor - margin),
            min(self.width, found[2] // factor + margin), min(self.height, found[3] // factor + margin),
        )  # fmt: skip
        large = (box[0] * factor, box[1] * factor, box[2] * factor, box[3] * factor)
        soft = self.shade.crop(box).filter(ImageFilter.GaussianBlur(0.0055 * self.scale))
        edges = self._edges(large)
        figure = self.ids.crop(large).point([0, *[255] * 255]).reduce(factor)
        near = edges.filter(ImageFilter.BoxBlur(0.010 * self.scale))
        near = near.point([255 - min(60, value * 3 // 5) for value in range(256)])
        near = ImageChops.lighter(near, ImageChops.invert(figure))
        strength = 0.46 if self.scale > 200 else 0.38
        lines = edges.point([round(255 - value * strength) for value in range(256)])
        light = ImageChops.multiply(ImageChops.multiply(soft, near), lines)
        photo.paste(ImageChops.multiply(photo.crop(box), Image.merge("RGB", (light, light, light))), box[:2])
        return photo

    def id_map(self) -> LabelMap:
        """Number of the piece that shows at each pixel, uint8 [H, W]; 0 is background."""
        half = self.factor // 2
        return np.ascontiguousarray(np.asarray(self.ids)[half :: self.factor, half :: self.factor])

    def label_map(self) -> LabelMap:
        """Label of the piece that shows at each pixel, uint8 [H, W]; 0 is background."""
        return np.array(self.labels, np.uint8)[self.id_map()]

    def named(self, prefixes: tuple[str, ...]) -> npt.NDArray[np.bool_]:
        """Where a piece shows whose name starts with one of ``prefixes``, bool [H, W]."""
        chosen = np.array([name.startswith(prefixes) for name in self.names])
        return np.asarray(chosen[self.id_map()])


class MaskCanvas:
    """The same painter's order without colours: only which piece shows where."""

    def __init__(self, size: tuple[int, int], scale: float, origin: tuple[float, float], factor: int) -> None:
        self.factor, self.scale, self.origin = factor, float(scale), np.array(origin)
        self.image = Image.new("L", (size[1] * factor, size[0] * factor), 0)
        self._draw = ImageDraw.Draw(self.image)

    def fill(self, shape: Points, value: int) -> None:
        """Set the pixels of a shape in body units."""
        self._draw.polygon(((shape * self.scale + self.origin) * self.factor).ravel().tolist(), fill=value)

    def sample(self) -> LabelMap:
        """Values at the middle of each pixel, uint8 [H, W]."""
        half = self.factor // 2
        return np.ascontiguousarray(np.asarray(self.image)[half :: self.factor, half :: self.factor])

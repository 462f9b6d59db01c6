"""Plane geometry, and a canvas that paints pieces of a figure, back to front, into a photo and a map of what is where.

Shapes are float64 arrays [N, 2] of (x, y), y downward, in body units: the standing height of a person is 1. They are
drawn at a multiple of the picture's size and averaged down, so that photo edges are smooth; the map takes the middle
sample of each pixel, so that its labels stay whole numbers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageChops, ImageDraw, ImageFilter

Colour = tuple[int, int, int]
LabelMap = npt.NDArray[np.uint8]
Points = npt.NDArray[np.float64]
Spot = Sequence[float] | npt.NDArray[np.float64]

#: Half width of every texture: its middle is the middle of the body.
TEXTURE_HALF = 0.34


def shaded(colour: Colour, factor: float) -> Colour:
    """The colour made darker (``factor`` below 1) or mixed with white (above 1; 2 is white)."""
    white, kept = max(0.0, factor - 1), min(factor, 1.0)
    red, green, blue = (round(channel * kept + (255 - channel) * white) for channel in colour)
    return red, green, blue


def points(*pairs: Sequence[float]) -> Points:
    """The given (x, y) pairs as an array [N, 2]."""
    return np.asarray(pairs, dtype=np.float64)


def vec(x: float, y: float) -> Points:
    """The step (x, y) as an array [2], to add to points."""
    return np.array([x, y], dtype=np.float64)


def across(left: Points, right: Points, heights: Points) -> Points:
    """Outline of a band whose left and right X [N] are given at ``heights`` [N]: down the left side, up the right."""
    return np.concatenate([np.stack([left, heights], axis=1), np.stack([right, heights], axis=1)[::-1]])


def spline(through: Points, steps: int = 6) -> Points:
    """Catmull-Rom curve through three or more points [N, 2], ``steps`` samples per span: [(N - 1) * steps + 1, 2]."""
    padded = np.concatenate([2 * through[:1] - through[1:2], through, 2 * through[-1:] - through[-2:-1]])
    t = np.linspace(0.0, 1.0, steps, endpoint=False)[None, :, None]
    before, start, end, after = (padded[i : len(through) - 1 + i, None, :] for i in range(4))
    curve = 0.5 * (
        2 * start
        + (end - before) * t
        + (2 * before - 5 * start + 4 * end - after) * t**2
        + (3 * start - before - 3 * end + after) * t**3
    )
    return np.concatenate([curve.reshape(-1, 2), through[-1:]])


def along(path: Points, share: float) -> Points:
    """The first ``share`` (0 to 1, by length) of a polyline [N, 2], its end cut exactly there."""
    marks = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(path, axis=0).T))])
    goal = share * marks[-1]
    kept = int(np.searchsorted(marks, goal, side="left"))
    end = [np.interp(goal, marks, path[:, axis]) for axis in (0, 1)]
    return np.concatenate([path[: max(kept, 1)], [end]])


def tube(path: Points, half_widths: Spot, other_half: Spot | None = None) -> Points:
    """Outline of a band around a polyline [N, 2] with the half width given at each of its N points.

    Where ``other_half`` is given, ``half_widths`` holds on the side that is left on the picture when the path runs
    downward, and ``other_half`` on the other; a negative half width lies beyond the path.
    """
    steps = np.gradient(path, axis=0)
    normals = np.stack([-steps[:, 1], steps[:, 0]], axis=1)
    normals /= np.maximum(np.hypot(normals[:, 0], normals[:, 1]), 1e-9)[:, None]
    left = np.asarray(half_widths)[:, None]
    right = left if other_half is None else np.asarray(other_half)[:, None]
    return np.concatenate([path + normals * left, (path - normals * right)[::-1]])


@functools.lru_cache(maxsize=32)
def _circle(count: int) -> Points:
    angle = np.linspace(0.0, 2 * np.pi, count, endpoint=False)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def disc(centre: Spot, rx: float, ry: float | None = None, count: int = 20) -> Points:
    """An ellipse with half axes ``rx`` and ``ry`` (a circle where ``ry`` is None) as ``count`` points."""
    return _circle(count) * (rx, rx if ry is None else ry) + (centre[0], centre[1])


def hull(cloud: Points) -> Points:
    """Convex hull of the points [N, 2], as far as 72 directions tell its corners apart."""
    outermost = (cloud @ _circle(72).T).argmax(axis=0)
    return cloud[outermost[np.flatnonzero(np.diff(outermost, prepend=outermost[-1:]))]]


def hull_of_discs(centres: Iterable[Spot], radii: Iterable[float]) -> Points:
    """Convex hull of circles, given by their centres and radii, as 28 points."""
    middles, reach, ways = np.array(list(centres)), np.array(list(radii)), _circle(28)
    outermost = (middles @ ways.T + reach[:, None]).argmax(axis=0)
    return middles[outermost] + reach[outermost, None] * ways


def star(centre: Spot, radius: float, tips: int = 5, inner: float = 0.45, turn: float = 0.0) -> Points:
    """A star with ``tips`` tips; ``inner`` is the inner radius over the outer one, ``turn`` is in radians."""
    angle = np.arange(2 * tips) * np.pi / tips - np.pi / 2 + turn
    reach = np.where(np.arange(2 * tips) % 2 == 0, radius, radius * inner)
    return np.stack([centre[0] + reach * np.cos(angle), centre[1] + reach * np.sin(angle)], axis=1)


@dataclass(frozen=True)
class Frame:
    """How cloth lies on one polygon: the texture point ``cloth`` at picture point ``at``.

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
    """One part of the figure: a union of polygons with one label; no line is drawn between pieces of one group."""

    group: str
    label: int
    shapes: list[Points]
    colour: Colour
    relief: float = 0.010  # width of the shadow on the side away from the light
    details: list[Detail] = field(default_factory=list)
    folds: list[Points] = field(default_factory=list)
    cloth: Cloth | None = None
    frames: list[Frame] = field(default_factory=list)  # one per shape where there is cloth


@dataclass(frozen=True)
class Placement:
    """Where a figure stands on a picture."""

    size: tuple[int, int]  # height and width of the picture, pixels
    scale: float  # pixels to a body height
    origin: tuple[float, float]  # pixel (x, y) of body point (0, 0)

    @property
    def factor(self) -> int:
        """Samples of a pixel along each axis: enough that thin lines survive on small pictures."""
        return 4 if self.size[0] <= 192 else 3 if self.size[0] <= 256 else 2

    def silhouettes(self, shapes: list[tuple[Points, int]], factor: int) -> LabelMap:
        """Shapes filled with their values in painter's order: uint8 [H, W], the middle one of ``factor`` samples."""
        height, width = self.size
        image = Image.new("L", (width * factor, height * factor), 0)
        draw = ImageDraw.Draw(image)
        for shape, value in shapes:
            draw.polygon(_flat((shape * self.scale + self.origin) * factor), fill=value)
        return np.asarray(image.resize((width, height), Image.Resampling.NEAREST))


def _flat(corners: Points) -> list[float]:
    """Corners as ``ImageDraw`` takes them: x, y, x, y and so on."""
    return corners.ravel().tolist()


def _box(corners: Points, image: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the part of ``image`` that the corners are in; empty where it holds none of them."""
    left, top = (max(0, int(value)) for value in corners.min(axis=0).tolist())
    right, bottom = (int(value) + 2 for value in corners.max(axis=0).tolist())
    return left, top, max(left, min(right, image.width)), max(top, min(bottom, image.height))


class Canvas:
    """``pieces`` painted into ``picture`` (RGB), back to front, and the map of what is where."""

    def __init__(self, picture: Image.Image, place: Placement, pieces: list[Piece]) -> None:
        self.pieces, self.size, self.scale, self.factor = pieces, place.size, place.scale, place.factor
        corners = np.concatenate([shape for piece in pieces for shape in piece.shapes]) * place.scale + place.origin
        margin = 0.025 * place.scale  # of shadows and outlines
        #: Only this part of the picture is worked on: the figure and its soft edges.
        self.box = _box(np.stack([corners.min(axis=0) - margin - 2, corners.max(axis=0) + margin]), picture)
        self.origin = np.array(place.origin) - self.box[:2]
        part = picture.crop(self.box)
        large = (part.width * self.factor, part.height * self.factor)
        self._colours = part.resize(large, Image.Resampling.NEAREST)
        self._ids = Image.new("L", large, 0)  # 0 where no piece is, otherwise its place in ``pieces`` from 1 on
        self._light = Image.new("L", part.size, 255)
        for number, piece in enumerate(pieces, 1):
            self._paint(piece, number)
        picture.paste(self._finished(), self.box[:2])

    def _samples(self, shape: Points) -> Points:
        return (shape * self.scale + self.origin) * self.factor

    def _paint(self, piece: Piece, number: int) -> None:
        draw, draw_ids = ImageDraw.Draw(self._colours), ImageDraw.Draw(self._ids)
        for index, shape in enumerate(piece.shapes):
            corners = self._samples(shape)
            draw_ids.polygon(_flat(corners), fill=number)
            if piece.cloth is None:
                draw.polygon(_flat(corners), fill=piece.colour)
            else:
                self._lay(piece.cloth, piece.frames[index], corners)
        self._shade(piece)
        for detail in piece.details:
            corners = self._samples(detail.shape)
            if detail.width:
                wide = max(1, round(detail.width * self.scale * self.factor))
                draw.line(_flat(corners), fill=detail.colour, width=wide, joint="curve")
            else:
                draw.polygon(_flat(corners), fill=detail.colour)

    def _lay(self, cloth: Cloth, frame: Frame, corners: Points) -> None:
        """Fill one polygon with cloth."""
        left, top, right, bottom = _box(corners, self._colours)
        mask = Image.new("1", (right - left, bottom - top), 0)
        if 0 in mask.size:
            return
        ImageDraw.Draw(mask).polygon(_flat(corners - (left, top)), fill=1)
        # Pixel of the box -> body units on the picture -> body units on the cloth -> pixel of the texture.
        unit, s = 1.0 / (self.scale * self.factor), cloth.scale
        cos, sin = np.cos(frame.turn), np.sin(frame.turn)
        x0 = (left - self.origin[0] * self.factor) * unit - frame.at[0]
        y0 = (top - self.origin[1] * self.factor) * unit - frame.at[1]
        a, b = cos / frame.squeeze, sin / frame.squeeze
        c = a * x0 + b * y0 + frame.cloth[0] + TEXTURE_HALF
        f = -sin * x0 + cos * y0 + frame.cloth[1] - cloth.top
        matrix = (a * unit * s, b * unit * s, c * s, -sin * unit * s, cos * unit * s, f * s)
        filled = cloth.image.transform(mask.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)
        self._colours.paste(filled, (left, top), mask)

    def _shade(self, piece: Piece) -> None:
        """Light from the upper left: a soft shadow on the far side and along the folds."""
        placed = [shape * self.scale + self.origin for shape in piece.shapes]
        left, top, right, bottom = _box(np.concatenate(placed), self._light)
        box, corner = (right - left, bottom - top), np.array([left, top])
        if 0 in box:
            return
        mask, light = Image.new("1", box, 0), Image.new("L", box, 214)
        on_mask, on_light = ImageDraw.Draw(mask), ImageDraw.Draw(light)
        aside = corner + np.array([1.0, 0.25]) * (piece.relief * self.scale)
        for shape in placed:
            on_mask.polygon(_flat(shape - corner), fill=1)
            on_light.polygon(_flat(shape - aside), fill=255)
        for fold in piece.folds:
            line = _flat(fold * self.scale + self.origin - corner)
            on_light.line(line, fill=216, width=max(1, round(0.006 * self.scale)))
        self._light.paste(light, (left, top), mask)

    def _edges(self) -> Image.Image:
        """White where pieces of different groups meet, at the picture's size."""
        names = [piece.group for piece in self.pieces]
        groups = np.asarray(self._ids.point(_table([names.index(name) + 1 for name in names])))
        edge = np.zeros(groups.shape, bool)
        down, across = groups[1:] != groups[:-1], groups[:, 1:] != groups[:, :-1]
        edge[1:] |= down
        edge[:-1] |= down
        edge[:, 1:] |= across
        edge[:, :-1] |= across
        return Image.fromarray(edge.view(np.uint8) * np.uint8(255)).reduce(self.factor)

    def _finished(self) -> Image.Image:
        """The picture, shaded and outlined; small ones have no outlines: one pixel would be a tenth of a sleeve."""
        light = self._light.filter(ImageFilter.GaussianBlur(0.0055 * self.scale))
        edges = self._edges() if self.size[0] > 168 else Image.new("L", light.size, 0)
        near = edges.filter(ImageFilter.BoxBlur(0.010 * self.scale))
        light = ImageChops.multiply(light, near.point([255 - min(60, value * 3 // 5) for value in range(256)]))
        # Shadows end where the figure does: the wall behind it and the white of a product shot stay clean.
        figure = self._ids.point([0, *[255] * 255]).reduce(self.factor)
        light = ImageChops.lighter(light, ImageChops.invert(figure))
        strength = 0.46 if self.scale > 200 else 0.38
        light = ImageChops.multiply(light, edges.point([round(255 - value * strength) for value in range(256)]))
        return ImageChops.multiply(self._colours.reduce(self.factor), Image.merge("RGB", (light, light, light)))

    def labels(self, chest: int) -> LabelMap:
        """Label of the piece that shows at each pixel, uint8 [H, W]: ``chest`` where its label is 0."""
        labelled = self._ids.point(_table([piece.label or chest for piece in self.pieces]))
        # Scaling down by nearest neighbour takes the middle sample of each pixel.
        part = labelled.resize(self._light.size, Image.Resampling.NEAREST)
        left, top, right, bottom = self.box
        whole = np.zeros(self.size, np.uint8)
        whole[top:bottom, left:right] = np.asarray(part)
        return whole


def _table(values: list[int]) -> list[int]:
    """What ``Image.point`` makes of the pieces' numbers, where 0 is the background."""
    return [0, *values, *[0] * (255 - len(values))]

"""Colour profiles made from their definitions, and the sRGB values that they stand for, without a colour engine."""

from __future__ import annotations

import struct
from itertools import product

import numpy as np

#: White points, as x and y.
D50, D65 = (0.3457, 0.3585), (0.3127, 0.3290)
#: Primaries and gamma of colour spaces; None is the curve of sRGB.
SPACES = {
    "sRGB": (((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), D65, None),
    "Display P3": (((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)), D65, None),
    "Adobe RGB": (((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), D65, 563 / 256),
    "ProPhoto": (((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), D50, 1.8),
}


def _xyz(xy: tuple[float, float]) -> np.ndarray:
    return np.array([xy[0] / xy[1], 1, (1 - xy[0] - xy[1]) / xy[1]])


def to_d50(space: str) -> np.ndarray:
    """Linear RGB of a space to XYZ, adapted to D50 by Bradford: [3, 3]."""
    primaries, white, _ = SPACES[space]
    columns = np.stack([_xyz(primary) for primary in primaries], axis=1)
    matrix = columns * np.linalg.solve(columns, _xyz(white))
    cone = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = np.diag((cone @ _xyz(D50)) / (cone @ _xyz(white)))
    return np.linalg.inv(cone) @ scale @ cone @ matrix


def decoded(values: np.ndarray, gamma: float | None) -> np.ndarray:
    """Linear light of values in [0, 1]."""
    if gamma is not None:
        return values**gamma
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def encoded(linear: np.ndarray) -> np.ndarray:
    """sRGB values in [0, 255] of linear light, clipped."""
    linear = np.clip(linear, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def in_srgb(pixels: np.ndarray, space: str) -> np.ndarray:
    """What 8-bit ``pixels`` [..., 3] of a space are in sRGB: float [..., 3] in [0, 255]."""
    linear = decoded(pixels / 255, SPACES[space][2])
    return encoded(linear @ (np.linalg.inv(to_d50("sRGB")) @ to_d50(space)).T)


def cmyk_in_srgb(pixels: np.ndarray) -> np.ndarray:
    """What 8-bit CMYK ``pixels`` [..., 4] are in sRGB by the profile of ``cmyk_profile``."""
    ink = pixels / 255
    return encoded((1 - ink[..., :3]) * (1 - ink[..., 3:]))


def _fixed(values: np.ndarray) -> bytes:
    return b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    table = np.round(65535 * decoded(np.linspace(0, 1, 1024), None)).astype(">u2")
    return b"curv\0\0\0\0" + struct.pack(">I", len(table)) + table.tobytes()


def _profile(kind: bytes, space: bytes, connection: bytes, name: str, tags: dict[bytes, bytes]) -> bytes:
    text = name.encode()
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" * 79, **tags}
    tags |= {b"wtpt": b"XYZ \0\0\0\0" + _fixed(_xyz(D50)), b"cprt": b"text\0\0\0\0none\0"}
    table, body, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        table += tag + struct.pack(">II", offset + len(body), len(data))
        body += data + b"\0" * (-len(data) % 4)
    header = struct.pack(">I4sI4s4s4s", offset + len(body), b"\0" * 4, 0x02400000, kind, space, connection)
    header += b"\0" * 12 + b"acsp" + b"\0" * 28 + _fixed(_xyz(D50))
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def rgb_profile(space: str) -> bytes:
    """A matrix profile of one of ``SPACES``."""
    matrix, curve = to_d50(space), _curve(SPACES[space][2])
    tags = {f"{c}XYZ".encode(): b"XYZ \0\0\0\0" + _fixed(matrix[:, k]) for k, c in enumerate("rgb")}
    tags |= {f"{c}TRC".encode(): curve for c in "rgb"}
    return _profile(b"mntr", b"RGB ", b"XYZ ", space, tags)


def grey_profile(gamma: float) -> bytes:
    """A profile for grey pictures."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", f"grey {gamma}", {b"kTRC": _curve(gamma)})


def cmyk_profile(points: int = 9) -> bytes:
    """A printer's profile of ideal inks, as a table of ``points`` values of each ink."""
    grid = np.array(list(product(np.linspace(0, 1, points), repeat=4)))
    linear = (1 - grid[:, :3]) * (1 - grid[:, 3:])
    relative = linear @ to_d50("sRGB").T / _xyz(D50)
    root = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative / (3 * (6 / 29) ** 2) + 4 / 29)
    lightness = 116 * root[:, 1] - 16
    a, b = 500 * (root[:, 0] - root[:, 1]), 200 * (root[:, 1] - root[:, 2])
    stored = np.stack([lightness / 100 * 65280, (a + 128) * 256, (b + 128) * 256], axis=1)
    table = np.clip(np.round(stored), 0, 65535).astype(">u2").tobytes()
    straight = np.array([0, 65535], ">u2").tobytes()
    lut = b"mft2\0\0\0\0" + bytes([4, 3, points, 0]) + _fixed(np.eye(3).ravel()) + struct.pack(">HH", 2, 2)
    return _profile(b"prtr", b"CMYK", b"Lab ", "ideal inks", {b"A2B0": lut + straight * 4 + table + straight * 3})

"""Near-duplicates: photos that show the same picture again, resized, re-encoded, brightened or slightly cropped.

Measured on 800 raw rows of the drawn wardrobe at 768x512, distances in bits of 256:

- 200 photos and their copies (median, 90%, largest): JPEG quality 60: 2, 4, 12; half size: 0, 2, 10; 15% brighter:
  4, 12, 36; 1% cropped from each side: 16, 24, 38; all of these at once: 16, 26, 42.
- Photos of different people, 232,000 pairs: smallest 38, one in 10,000 up to 52, half up to 118.

So 24 bits find nine in ten of the cropped copies and nearly all of the others, and take two people for one in about
one of a million pairs. Compare photos of people only: flat shots of one cut in two colours lie 12 bits apart.
"""

from __future__ import annotations

from collections.abc import Sequence

import imagehash
import numpy as np
import numpy.typing as npt
from PIL import Image

#: Bits of a fingerprint along each side of its square.
_SIDE = 16
_BYTES = _SIDE * _SIDE // 8
#: ``imagehash`` looks at a grey picture with 4 pixels per bit. Shrinking a photo by a whole factor to not less than
#: twice of that costs a tenth of resizing it from full size.
_LEAST_PIXELS = 2 * 4 * _SIDE
#: Distances that are held at a time: 8 MiB.
_CHUNK = 1 << 21


def fingerprint(photo: Image.Image) -> bytes:
    """Perceptual hash of an RGB picture: 256 bits in 32 bytes, alike for pictures that look alike.

    It is ``imagehash.phash`` with ``hash_size=16``: the signs, about their median, of the 16x16 lowest frequencies
    of the picture in grey.
    """
    factor = min(photo.size) // _LEAST_PIXELS
    small = photo.reduce(factor) if factor > 1 else photo
    return np.packbits(imagehash.phash(small, hash_size=_SIDE).hash).tobytes()


def near_duplicates(hashes: Sequence[bytes], others: Sequence[bytes], distance: int) -> dict[int, int]:
    """Position in ``hashes`` -> position of the nearest in ``others``, for those within ``distance`` bits.

    Of equally near ones the first. All are results of ``fingerprint``. Memory does not grow with the number of pairs.
    """
    if not others:
        return {}
    ours, theirs = _words(hashes), _words(others)
    found: dict[int, int] = {}
    rows = max(1, _CHUNK // len(theirs))
    for start in range(0, len(ours), rows):
        chunk = ours[start : start + rows]
        bits = np.zeros((len(chunk), len(theirs)), np.uint16)
        for word in range(chunk.shape[1]):
            bits += np.bitwise_count(chunk[:, word, None] ^ theirs[None, :, word])
        nearest = bits.argmin(axis=1)
        for row in np.flatnonzero(bits[np.arange(len(chunk)), nearest] <= distance).tolist():
            found[start + row] = int(nearest[row])
    return found


def _words(hashes: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    """Fingerprints as ``[n, 4]`` words of 64 bits."""
    return np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, _BYTES // 8)

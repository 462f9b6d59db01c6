"""Near-duplicates: copies of a photo are found, other people are not, and the search agrees with counting bits."""

from __future__ import annotations

import io
import itertools

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from deepfashion_training.data.near_duplicates import fingerprint, near_duplicates
from deepfashion_training.embedded.rows import raw_specs
from deepfashion_training.images.quality import Gates

DISTANCE = Gates().near_duplicate_distance


def bits(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    """One photo each of 40 drawn people, 256x170 pixels."""
    by_pid = {spec.pid: spec for spec in itertools.islice(raw_specs(300, 8), 300) if spec.view != "flat"}
    return [spec.draw((256, 170)).photo for spec in list(by_pid.values())[:40]]


def recompressed(photo: Image.Image) -> Image.Image:
    sink = io.BytesIO()
    photo.save(sink, "JPEG", quality=60)
    return Image.open(io.BytesIO(sink.getvalue()))


def cropped(photo: Image.Image) -> Image.Image:
    across, down = round(photo.width * 0.01), round(photo.height * 0.01)
    return photo.crop((across, down, photo.width - across, photo.height - down))


@pytest.mark.parametrize(
    ("copy", "found"),
    [
        (recompressed, 1.0),
        (lambda photo: photo.resize((photo.width // 2, photo.height // 2)), 1.0),
        (lambda photo: photo.resize((photo.width * 2, photo.height * 2)), 1.0),
        (lambda photo: ImageEnhance.Brightness(photo).enhance(1.1), 0.9),
        (cropped, 0.75),
    ],
    ids=["recompressed", "halved", "enlarged", "brightened", "cropped"],
)
def test_copies_are_found_and_nobody_else(photos, copy, found):
    copies = near_duplicates(
        [fingerprint(copy(photo)) for photo in photos], [fingerprint(photo) for photo in photos], DISTANCE
    )
    assert all(copied == original for copied, original in copies.items())
    assert len(copies) >= found * len(photos)


def test_other_people_are_further_away(photos):
    prints = [fingerprint(photo) for photo in photos]
    assert min(bits(one, other) for one, other in itertools.combinations(prints, 2)) > DISTANCE


def test_a_fingerprint_is_the_perceptual_hash_in_32_bytes(photos):
    expected = imagehash.phash(photos[0], hash_size=16).hash.ravel()
    assert len(fingerprint(photos[0])) == 32
    assert np.unpackbits(np.frombuffer(fingerprint(photos[0]), np.uint8)).tolist() == expected.tolist()


def flipped(print_: bytes, count: int) -> bytes:
    """A fingerprint that differs in exactly ``count`` bits."""
    return (int.from_bytes(print_, "big") ^ ((1 << count) - 1)).to_bytes(32, "big")


def test_the_nearest_within_the_distance_and_the_first_of_equals():
    base = bytes(range(32))
    others = [flipped(base, 9), flipped(base, 3), flipped(base, 3), flipped(base, 200)]
    assert near_duplicates([base], others, 24) == {0: 1}
    assert near_duplicates([base], others, 3) == {0: 1}
    assert near_duplicates([base], others, 2) == {}
    assert near_duplicates([flipped(base, 200), base], [base], 0) == {1: 0}
    assert near_duplicates([base], [], 24) == near_duplicates([], [base], 24) == {}


def test_all_bits_can_differ():
    assert near_duplicates([bytes(32)], [b"\xff" * 32], 255) == {}
    assert near_duplicates([bytes(32)], [b"\xff" * 32], 256) == {0: 0}


def test_the_search_gives_what_counting_bits_gives():
    rng = np.random.default_rng(2)
    others = [rng.bytes(32) for _ in range(40)]
    hashes = [flipped(others[int(rng.integers(40))], int(rng.integers(60))) for _ in range(90)]
    expected = {}
    for position, one in enumerate(hashes):
        distances = [bits(one, other) for other in others]
        if min(distances) <= 30:
            expected[position] = distances.index(min(distances))
    assert 20 < len(expected) < 80
    assert near_duplicates(hashes, others, 30) == expected

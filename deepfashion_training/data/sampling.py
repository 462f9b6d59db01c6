"""Which rows: splits by hash, subsets and weights by garment type, and unpaired partners.

Everything here is decided by hashes of a seed and a key, never by a random generator's state, so that the answer
for one row does not depend on how many others there are.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence


def unit_hash(seed: int, key: object) -> float:
    """A number in [0, 1) that depends on ``seed`` and ``str(key)`` only; the same on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def held_out(groups: Sequence[Hashable], fraction: float, seed: int) -> list[bool]:
    """For each row whether it is held out, so that rows of one group stay together.

    A group is held out when its hash is below ``fraction``: appending rows moves no earlier row. Only where
    that leaves a side empty does the group with the lowest (highest) hash change sides. Raises ``ValueError``
    with fewer than two groups.
    """
    place = {group: unit_hash(seed, group) for group in dict.fromkeys(groups)}
    if len(place) < 2:
        raise ValueError(f"cannot hold out a part of {len(place)} group(s): at least two are needed")
    chosen = {group for group, value in place.items() if value < fraction}
    if not chosen:
        chosen = {min(place, key=place.__getitem__)}
    elif len(chosen) == len(place):
        chosen.remove(max(place, key=place.__getitem__))
    return [group in chosen for group in groups]


def stratified_subset(types: Sequence[int], count: int, seed: int, *, equally: bool = False) -> list[int]:
    """Positions of ``count`` rows, ascending, with each type in proportion and, if there is room, at least once.

    All positions when there are no more. ``equally``: as many of each type, and more of the others where one has fewer.
    """
    if count >= len(types):
        return list(range(len(types)))
    sizes = Counter(types)
    quotas = _quotas(sizes, Counter(dict.fromkeys(sizes, 1)) if equally else sizes, count)
    ordered = sorted(range(len(types)), key=lambda position: unit_hash(seed, position))
    chosen = []
    for position in ordered:
        if quotas[types[position]] > 0:
            quotas[types[position]] -= 1
            chosen.append(position)
    return sorted(chosen)


def _quotas(sizes: Counter[int], shares: Counter[int], count: int) -> Counter[int]:
    """How many of ``count`` rows each type gets: one each first, the rest to whoever is furthest below its share."""
    total = sum(shares.values())
    rarest_first = sorted(sizes, key=lambda kind: (sizes[kind], kind))
    quotas: Counter[int] = Counter()
    for given in range(count):
        if given < len(rarest_first):
            kind = rarest_first[given]
        else:
            open_kinds = [kind for kind in rarest_first if quotas[kind] < sizes[kind]]
            kind = max(open_kinds, key=lambda kind: count * shares[kind] / total - quotas[kind])
        quotas[kind] += 1
    return quotas


def type_weights(
    types: Sequence[int], shares: Mapping[int, float], within: Sequence[float] | None = None
) -> list[float]:
    """A weight per row, summing to 1, that gives each type its part of the sum of ``shares``.

    Rows of one type weigh as ``within`` says, alike where it is None. Every type with a share has to have a row.
    """
    within = within or [1.0] * len(types)
    masses = dict.fromkeys(types, 0.0)
    for kind, weight in zip(types, within, strict=True):
        masses[kind] += weight
    total = sum(shares.values())
    return [shares[kind] * weight / (total * masses[kind]) for kind, weight in zip(types, within, strict=True)]


def unpaired_partners(types: Sequence[int], groups: Sequence[Hashable], seed: int) -> list[int]:
    """For each row the position of another row of the same type whose garment it gets: a permutation.

    No row gets its own garment where its type has two rows or more, nor one of its own group (the same person)
    where no group holds more than half of the type.
    """
    partners = list(range(len(types)))
    for kind in dict.fromkeys(types):
        rows = [position for position, other in enumerate(types) if other == kind]
        sizes = Counter(groups[position] for position in rows)
        rows.sort(key=lambda position: (unit_hash(seed, groups[position]), unit_hash(seed, position)))
        # Groups lie together, so a step as long as the largest of them leaves every group.
        step = max(sizes.values()) if len(sizes) > 1 else 1
        for index, position in enumerate(rows):
            partners[position] = rows[(index + step) % len(rows)]
    return partners


def split_of(group: object, validation: float, test: float, seed: int) -> str:
    """``"train"``, ``"validation"`` or ``"test"`` for a group, by its hash; ``validation`` and ``test`` are shares."""
    place = unit_hash(seed, group)
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"

"""In which order a run sees the rows, and which seed belongs to a place in it: functions of the step alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Sampler


def seed_for(seed: int, *place: int) -> int:
    """A 64-bit seed for a ``place`` in the run, such as rank and forward pass: draws need no saved state."""
    return int(np.random.SeedSequence([seed, *place, len(place)]).generate_state(1, np.uint64)[0])


class PairStream(Sampler[list[int]]):
    """Endless seeded order of rows, cut into global batches and dealt to the ranks.

    Epochs of permuted rows are joined into one stream; a forward pass takes the next ``batch_size * world_size`` of it.
    So nothing is repeated or lost at an epoch's edge, and the place in the stream is a function of the step alone. With
    ``weights`` (one per row) an epoch draws with replacement instead.
    """

    def __init__(
        self, rows: int, batch_size: int, batches: range, seed: int, rank: int = 0, world_size: int = 1,
        weights: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        self.rows = rows
        self.batch_size = batch_size
        self.batches = batches
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.shares = None if weights is None else np.asarray(weights, dtype=np.float64) / np.sum(weights)
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def row_at(self, place: int) -> int:
        """Row at ``place`` of the stream."""
        epoch, offset = divmod(place, self.rows)
        if epoch != self._epoch:
            self._epoch = epoch
            draw = np.random.default_rng([self.seed, epoch])
            drawn = self.shares is not None
            self._order = draw.choice(self.rows, self.rows, p=self.shares) if drawn else draw.permutation(self.rows)
        return int(self._order[offset])

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield [self.row_at(first + k) for k in range(self.batch_size)]


def validation_rows(dataset: Any, count: int) -> list[int]:
    """Which rows are drawn at every validation: the first ones, garment types in turn where the dataset tells them."""
    types = dataset.cloth_types() if hasattr(dataset, "cloth_types") else [1] * len(dataset)
    by_type = [[row for row, kind in enumerate(types) if kind == wanted] for wanted in sorted(set(types))]
    in_turn = [row for turn in itertools.zip_longest(*by_type) for row in turn if row is not None]
    return in_turn[:count]

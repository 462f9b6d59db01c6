"""In which order a run sees the rows, and which seed belongs to a place in it: functions of the step alone."""

from __future__ import annotations

import bisect
import itertools
import math
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
    ``weights`` (one per row, from 0) each place draws anew instead. With ``final_weights``, too, the chances of rows
    move linearly from the first ones (None: equal) at the stream's beginning to the final ones where ``batches`` end.
    Raises ``ValueError`` for weights that are none.
    """

    def __init__(
        self, rows: int, batch_size: int, batches: range, seed: int, rank: int = 0, world_size: int = 1,
        weights: Sequence[float] | None = None, final_weights: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        self.rows = rows
        self.batch_size = batch_size
        self.batches = batches
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.last = math.inf  # place at which the final weights hold
        self._sums = [] if weights is None else [_running_sums(weights, rows)] * 2
        if final_weights is not None:
            self.last = max(1, batches.stop * batch_size * world_size - 1)
            first = self._sums[0] if self._sums else _running_sums([1.0] * rows, rows)
            self._sums = [first, _running_sums(final_weights, rows)]
        self._epoch = -1
        self._drawn: Any = np.empty(0)  # of the epoch: its rows in order or, with weights, numbers in [0, 1)

    def row_at(self, place: int) -> int:
        """Row at ``place`` of the stream."""
        epoch, offset = divmod(place, self.rows)
        if epoch != self._epoch:
            self._epoch = epoch
            draw = np.random.default_rng([self.seed, epoch])
            self._drawn = draw.random(self.rows) if self._sums else draw.permutation(self.rows)
        if not self._sums:
            return int(self._drawn[offset])
        first, final = self._sums
        moved = min(1.0, place / self.last)

        def chance_up_to(row: int) -> float:
            return float((1 - moved) * first[row] + moved * final[row])

        return bisect.bisect_right(range(self.rows), self._drawn[offset], key=chance_up_to)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            first = (batch * self.world_size + self.rank) * self.batch_size
            yield [self.row_at(first + k) for k in range(self.batch_size)]


def _running_sums(weights: Sequence[float], rows: int) -> np.ndarray:
    """For each row the chance that it or one before it is drawn, up to 1."""
    shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
    if shares.shape != (rows,) or not (shares >= 0).all():
        raise ValueError(f"sampling weights must be one for each of {rows} rows, from 0 and not all 0")
    sums = shares.cumsum()
    return sums / sums[-1]


def weights_of(dataset: Any) -> list[Sequence[float] | None]:
    """First and final sampling weights of a dataset's rows; None for what it does not offer."""
    names = ("sampling_weights", "final_sampling_weights")
    return [getattr(dataset, name)() if hasattr(dataset, name) else None for name in names]


def validation_rows(dataset: Any, count: int) -> list[int]:
    """Which rows are drawn at every validation: the first ones, garment types in turn where the dataset tells them."""
    types = dataset.cloth_types() if hasattr(dataset, "cloth_types") else [1] * len(dataset)
    by_type = [[row for row, kind in enumerate(types) if kind == wanted] for wanted in sorted(set(types))]
    in_turn = [row for turn in itertools.zip_longest(*by_type) for row in turn if row is not None]
    return in_turn[:count]

"""Column types of what a preparation writes."""

from __future__ import annotations

import datasets
import pyarrow as pa

from deepfashion_training.data.schema import DOCUMENTED_COLUMNS, PROVENANCE_COLUMNS

_PICTURES = ("image", "cloth", "mask", "thumbnail")
_NUMBERS = ("cloth_type", "source_row", "garment_row")


def _features(names: tuple[str, ...]) -> datasets.Features:
    return datasets.Features(
        {
            name: datasets.Image() if name in _PICTURES else datasets.Value("int64" if name in _NUMBERS else "string")
            for name in names
        }
    )


#: Documented rows with their provenance: ``data/*.parquet``.
PAIR_FEATURES = _features((*DOCUMENTED_COLUMNS, *PROVENANCE_COLUMNS))

_WHICH = ("source_row", "pid", "variant", "view", "gender", "category", "caption")

#: ``quarantine.parquet``: rows that may not be trained on, and why.
QUARANTINE_FEATURES = _features((*_WHICH, "reason", "detail", "thumbnail"))

#: ``unpaired.parquet``: good rows that no pair came of, and why.
UNPAIRED_FEATURES = _features((*_WHICH, "reason"))

#: What a finished batch is kept as until all batches are done: see ``batch.OUTPUT_COLUMNS``.
BATCH_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("outcome", "reason", "detail")),
        ("mined", pa.bool_()),
        *PAIR_FEATURES.arrow_schema,
        ("split", pa.string()),
        ("garment_row", pa.int64()),
        *((name, pa.binary()) for name in ("fingerprint", "garment_digest", "features_as_is", "features")),
        ("likeness", pa.float64()),
        ("mask_how", pa.string()),
        ("mask_inverted", pa.bool_()),
        ("thumbnail", pa.binary()),
    ]
)

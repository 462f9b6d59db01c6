"""What a preparation is asked for, and the key by which its result is known again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from deepfashion_training.images.masks import MaskPolicy
from deepfashion_training.images.quality import Gates
from deepfashion_training.preparation.garment_views import SOURCES

MaskPolarity = Literal["auto", "white", "black"]
MASK_POLARITIES: tuple[str, ...] = get_args(MaskPolarity)

#: Raised when the same rows and settings give other pairs than before.
VERSION = 2


@dataclass(frozen=True)
class Settings:
    """Everything besides the rows that decides what comes out. Raises ``ValueError`` for values out of range."""

    columns: dict[str, str] = field(default_factory=dict)  # canonical name -> column, where it is called otherwise
    category_types: dict[str, int] = field(default_factory=dict)  # category -> garment type, before the table's
    garment_sources: tuple[str, ...] = SOURCES  # where a garment picture may come from, best first
    same_photo_in_evaluation: bool = False  # pixels could be copied, so such a pair measures nothing
    max_same_photo_share: float = 0.25  # of the pairs of a split
    mask_policy: MaskPolicy = "agnostic"
    mask_polarity: MaskPolarity = "auto"  # which colour means repaint; auto looks at the picture's corners
    parser: str | None = None  # human parsing model: Hub id or folder
    parser_revision: str | None = None
    mine_lower_body: bool = False  # lower-body pairs from rows labelled as tops; needs the parser
    validation_share: float = 0.05  # of the pids
    test_share: float = 0.05
    seed: int = 0
    limit: int | None = None  # take this many rows, whole people, garment types in turn
    gates: Gates = field(default_factory=Gates)

    def __post_init__(self) -> None:
        if not 0 <= self.max_same_photo_share <= 1:
            raise ValueError(f"max_same_photo_share {self.max_same_photo_share}: a share between 0 and 1")
        for name in ("validation_share", "test_share"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} {getattr(self, name)}: 0 or more and below 1")
        if self.validation_share + self.test_share >= 1:
            raise ValueError(
                f"validation_share {self.validation_share} and test_share {self.test_share} leave nothing for training"
            )
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit {self.limit}: 1 or more")
        if self.mine_lower_body and self.parser is None:
            raise ValueError("mine_lower_body needs to see where the trousers are: pass a parser")

    def as_json(self) -> dict[str, Any]:
        """The settings in plain types, for ``report.json`` and the key."""
        return {**asdict(self), "garment_sources": list(self.garment_sources), "version": VERSION}

    def key(self, source: str, fingerprint: str) -> str:
        """The same for the same settings on the same rows, and for nothing else."""
        content = json.dumps([self.as_json(), source, fingerprint], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

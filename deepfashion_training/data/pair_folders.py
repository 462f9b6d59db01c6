"""Folders of picture files: layouts of VITON-HD and DressCode, and pictures beside a ``metadata.jsonl`` or ``.csv``.

The tables say where each layout keeps what, for reading and for writing. Where a file is looked for in several places,
the first is where it is written. Names are those that CatVTON, IDM-VTON and ladi-vton read.
"""

from __future__ import annotations

from deepfashion_training.garment_types import FULL, LOWER, UPPER

VITON_HD, DRESSCODE = "viton-hd", "dresscode"
#: The folders of DressCode with the types of their garments, in the order of the codes 0, 1, 2 in its common lists.
CATEGORIES: dict[str, int] = {"upper_body": UPPER, "lower_body": LOWER, "dresses": FULL}
#: Where a picture lies: layout -> what it shows -> folders and endings. A person's or garment's file has the name in
#: the list; the ending of any other file takes the place of ``.jpg`` in the person's name. ``parse`` has ATR labels,
#: ``parse_lip`` those of LIP. In VITON-HD the folders lie in ``train`` and ``test``, in DressCode in ``CATEGORIES``.
PLACES: dict[str, dict[str, tuple[tuple[str, str], ...]]] = {
    VITON_HD: {
        "image": (("image", ""),),
        "cloth": (("cloth", ""),),
        "cloth_mask": (("cloth-mask", ""),),  # of the garment's name
        "mask": (("agnostic-mask", "_mask.png"), ("agnostic-mask", ".png")),
        "parse_lip": (("image-parse-v3", ".png"),),
    },
    DRESSCODE: {
        "image": (("images", ""),),
        "cloth": (("images", ""),),
        "cloth_mask": (("masks", ".png"),),  # of the garment's name
        "mask": (("agnostic_masks", ".png"),),
        "parse": (("label_maps", "_4.png"),),
    },
}
#: Lists of lines "PERSON GARMENT": layout -> split or ``unpaired`` test -> names. Those of VITON-HD lie beside
#: ``train`` and ``test``; those of DressCode in each category, or for all of them beside the categories with the
#: category's code as third word.
LISTS: dict[str, dict[str, tuple[str, ...]]] = {
    VITON_HD: {
        "train": ("train_pairs.txt",),
        "test": ("test_pairs.txt", "test_pairs_paired.txt", "test_pairs_unpaired.txt"),
        "unpaired": ("test_pairs_unpaired.txt", "test_pairs.txt"),
    },
    DRESSCODE: {
        "train": ("train_pairs.txt",),
        "test": ("test_pairs_paired.txt",),
        "unpaired": ("test_pairs_unpaired.txt",),
    },
}
#: Ends of a DressCode person's and garment's name, between number and ending, as in 000000_0.jpg.
PERSON_END, GARMENT_END = "_0", "_1"


def place_of(layout: str, what: str, name: str, which: int = 0) -> str:
    """Path, below ``train`` or a category, of the picture ``what`` of the person or garment whose file is ``name``."""
    folder, ending = PLACES[layout][what][which]
    stem = name.rpartition(".")[0] or name
    if ending.startswith("_4"):
        stem = stem.removesuffix(PERSON_END)
    return f"{folder}/{stem}{ending}" if ending else f"{folder}/{name}"

"""Writes a VITON-HD folder of drawn people in drawn tops: what the small FLUX-Fill learns from, as the real one did.

    python -m deepfashion_training.embedded.make.tops_folder --output_dir D [--rows N] [--seed S]
                                                        [--size HxW] [--num_proc P] [--elsewhere SHARE]

Tops only, and people from head to thighs, as in VITON-HD: a person wears whatever goes with the top, and the area to
repaint is the upper body's. With ``--elsewhere`` a share of the rows is plain inpainting, as FLUX.1-Fill learned it
before CatVTON-Flux: legs or all clothes are to be repainted, and the top in the garment half says nothing about them.
The files are the same bytes for the same arguments, whatever ``num_proc`` is.
"""

from __future__ import annotations

import argparse
import functools
import io
import multiprocessing
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from deepfashion_training.cli import number
from deepfashion_training.embedded.body import PERSON_VIEWS
from deepfashion_training.embedded.figure import draw_flat
from deepfashion_training.embedded.rows import STUDIO_SHARES, RowSpec, generator
from deepfashion_training.embedded.wardrobe import size_of
from deepfashion_training.garment_types import FULL, LOWER, UPPER

#: Folders of a phase of VITON-HD that the trainer reads.
FOLDERS = ("image", "cloth", "cloth-mask", "agnostic-mask")
#: Not that of any wardrobe that evaluates: people of another seed are other people.
SEED = 1008
_JPEG_QUALITY = 95


def top_specs(rows: int, seed: int) -> Iterator[RowSpec]:
    """``rows`` people, each once, in an outfit drawn around a top, from head to thighs; views as in the wardrobe."""
    shares = {view: share for view, share in zip(PERSON_VIEWS, STUDIO_SHARES, strict=True) if view != "full"}
    chances = np.array(list(shares.values())) / sum(shares.values())
    for index in range(rows):
        view = str(generator(seed, index, 9).choice(list(shares), p=chances))
        yield RowSpec(seed, index, index, 1, view, UPPER, UPPER, studio=True)


def repainted_type(spec: RowSpec, elsewhere: float) -> int:
    """Garment type whose area is to be repainted: the top's, or for a share ``elsewhere`` of the rows another's."""
    draw = spec.generator(11).random(2)
    return UPPER if draw[0] >= elsewhere else (LOWER if draw[1] < 0.5 else FULL)


def write_tops_folder(
    output_dir: str | Path,
    rows: int,
    test_rows: int = 16,
    seed: int = SEED,
    size: tuple[int, int] = (128, 96),
    mirrored: bool = True,
    num_proc: int = 1,
    elsewhere: float = 0.0,
) -> Path:
    """Draw a VITON-HD folder with ``rows`` people in ``train/`` and ``test_rows`` others in ``test/``.

    ``size`` is (height, width) in pixels. With ``mirrored`` each training pair is there a second time as its mirror
    image, so the list has twice as many lines. ``elsewhere`` is the share of rows that are plain inpainting. The folder
    appears only once it is complete. Raises ``FileExistsError`` where ``output_dir`` holds anything already.
    """
    from tqdm import tqdm

    target = Path(output_dir)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} is not an empty folder: choose another --output_dir or remove it")
    draft = target.parent / f".{target.name}.{os.getpid()}.tmp"
    for folder in FOLDERS:
        for phase in ("train", "test"):
            (draft / phase / folder).mkdir(parents=True)
    specs = list(top_specs(rows + test_rows, seed))
    draw = functools.partial(_write_row, draft, rows, size, mirrored, elsewhere)
    if num_proc == 1:
        for _ in tqdm(map(draw, specs), total=len(specs), desc="drawing tops", unit="row"):
            pass
    else:  # spawned, because a fork would copy the threads of whatever else the process has loaded
        with multiprocessing.get_context("spawn").Pool(num_proc) as pool:
            for _ in tqdm(pool.imap(draw, specs, chunksize=16), total=len(specs), desc="drawing tops", unit="row"):
                pass
    for phase, part in (("train", specs[:rows]), ("test", specs[rows:])):
        names = [name for spec in part for name in _names(spec, mirrored and phase == "train")]
        lines = (f"{name}.jpg {name}.jpg\n" for name in names)
        (draft / f"{phase}_pairs.txt").write_text("".join(lines), "utf-8")
    draft.replace(target)
    return target


def _names(spec: RowSpec, mirrored: bool) -> list[str]:
    return [f"{spec.index:06d}", f"{spec.index:06d}m"][: 1 + mirrored]


def _write_row(target: Path, rows: int, size: tuple[int, int], mirrored: bool, elsewhere: float, spec: RowSpec) -> None:
    """Draw one row and write its four pictures, and with ``mirrored`` their mirror images, too."""
    repainted = repainted_type(spec, elsewhere)
    drawing = replace(spec, cloth_type=repainted).draw(size)  # shows the part of the body that is repainted
    flat, lies = draw_flat(spec.garment(), drawing.person.gender, size, drawing.outfit.inner)
    masks = [Image.fromarray(mask.astype(np.uint8) * np.uint8(255)) for mask in (lies, drawing.agnostic[repainted])]
    training = spec.index < rows
    for name in _names(spec, mirrored and training):
        pictures = [drawing.photo, flat, *masks]
        if name.endswith("m"):
            pictures = [ImageOps.mirror(picture) for picture in pictures]
        for folder, picture in zip(FOLDERS, pictures, strict=True):
            sink = io.BytesIO()
            if folder == "agnostic-mask":
                picture.save(sink, "PNG", compress_level=1)
            else:
                picture.save(sink, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
            ending = "_mask.png" if folder == "agnostic-mask" else ".jpg"
            (target / ("train" if training else "test") / folder / f"{name}{ending}").write_bytes(sink.getvalue())


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, required=True, help="folder to write; must not exist or be empty")
    parser.add_argument("--rows", type=number(int, 1), default=8000, help="people in train/")
    parser.add_argument("--test_rows", type=number(int, 1), default=16, help="people in test/")
    parser.add_argument("--seed", type=number(int, 0), default=SEED, help="seed of people, poses and clothes")
    parser.add_argument("--size", type=size_of, default=(128, 96), metavar="HxW", help="height x width in pixels")
    parser.add_argument("--num_proc", type=number(int, 1), default=1, help="processes that draw")
    parser.add_argument("--elsewhere", type=number(float, 0, 1), default=0.0, help="share of plain inpainting rows")
    args = parser.parse_args(argv)
    folder = write_tops_folder(
        args.output_dir, args.rows, args.test_rows, args.seed, args.size,
        num_proc=args.num_proc, elsewhere=args.elsewhere,
    )  # fmt: skip
    sys.stdout.write(f"{args.rows} people in tops written to {folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

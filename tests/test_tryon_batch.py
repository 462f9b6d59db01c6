"""The command `tryon --batch`: what is drawn, what is kept for the next run, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import pieces, pixels, stop_after

from deepfashion_training.inference.records import read_record


def table(folder: Path, *rows: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text("\n".join(["person,garment,mask,garment_type,caption,output", *rows]) + "\n")
    return path


@pytest.fixture
def batch(wardrobe_copy) -> list[object]:
    """Flags of a batch of three rows: by mask, by the row's own type, by the type of --garment_type and no name."""
    rows = ["upper-person.png,upper-garment.png,upper-mask.png,,,a.png"]
    rows += ["lower-person.png,lower-garment.png,,lower,,b.png", "full-person.png,full-garment.png,,,,"]
    return ["--batch", table(wardrobe_copy, *rows), "--garment_type", "full", "--output", wardrobe_copy / "out"]


NAMES = ["4-full-person-full-garment.png", "a.png", "b.png"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_batch_draws_what_single_runs_draw(batch, wardrobe_copy, tryon_run):
    output = tryon_run(*batch)
    assert (
        output.startswith(f"3 of 3 rows drawn into {wardrobe_copy / 'out'}\n") and names(wardrobe_copy / "out") == NAMES
    )
    tryon_run(*pieces(wardrobe_copy, "upper"), "--output", wardrobe_copy / "single.png")
    tryon_run(*pieces(wardrobe_copy, "lower")[:4], "--garment_type", "lower", "--output", wardrobe_copy / "typed.png")
    assert (pixels(wardrobe_copy / "single.png") == pixels(wardrobe_copy / "out" / "a.png")).all()
    assert (pixels(wardrobe_copy / "typed.png") == pixels(wardrobe_copy / "out" / "b.png")).all()
    assert "3 of 3 pictures are drawn already" in tryon_run(*batch)


def test_a_batch_that_was_stopped_draws_only_what_is_left(batch, wardrobe_copy, tryon_run, monkeypatch):
    with monkeypatch.context() as patched:
        stop_after(1, patched)
        message = tryon_run(*batch, code=130)
    assert message.splitlines()[-1].startswith("tryon: stopped")
    assert names(wardrobe_copy / "out") == ["a.png"]
    before = (wardrobe_copy / "out" / "a.png").stat()
    output = tryon_run(*batch)
    assert "1 of 3 pictures are drawn already" in output and "2 of 2 rows drawn into" in output
    assert names(wardrobe_copy / "out") == NAMES
    after = (wardrobe_copy / "out" / "a.png").stat()
    assert (after.st_mtime_ns, after.st_ino) == (before.st_mtime_ns, before.st_ino)


def test_of_several_pictures_of_a_row_only_those_that_are_missing_are_drawn(
    batch, wardrobe_copy, tryon_run, monkeypatch
):
    with monkeypatch.context() as patched:
        stop_after(3, patched)
        tryon_run(*batch, "--num_images", 2, code=130)
    assert names(wardrobe_copy / "out") == ["a-0.png", "a-1.png", "b-0.png"]
    before = (wardrobe_copy / "out" / "b-0.png").stat().st_mtime_ns
    assert "3 of 6 pictures are drawn already" in tryon_run(*batch, "--num_images", 2)
    assert (wardrobe_copy / "out" / "b-0.png").stat().st_mtime_ns == before and len(names(wardrobe_copy / "out")) == 6


def test_pairs_and_masks_that_are_asked_for_later_are_drawn(batch, wardrobe_copy, tryon_run):
    tryon_run(*batch)
    output = tryon_run(*batch, "--save_pair", "--save_mask")
    assert "3 of 3 rows drawn" in output and len(names(wardrobe_copy / "out")) == 9
    assert "3 of 3 pictures are drawn already" in tryon_run(*batch, "--save_pair", "--save_mask")


def test_rows_may_be_added(batch, wardrobe_copy, tryon_run):
    """One that needs the parser where the others brought masks, too."""
    first = "upper-person.png,upper-garment.png,upper-mask.png,,,a.png"
    table(wardrobe_copy, first)
    tryon_run(*batch)
    table(wardrobe_copy, first, "lower-person.png,lower-garment.png,,lower,,b.png")
    assert "1 of 2 pictures are drawn already" in tryon_run(*batch) and names(wardrobe_copy / "out") == [
        "a.png",
        "b.png",
    ]
    assert read_record(wardrobe_copy / "out" / "a.png")["parser"] is None
    assert read_record(wardrobe_copy / "out" / "b.png")["parser"].endswith("drawn_parser")


def test_other_settings_are_refused(batch, wardrobe_copy, tryon_run, tryon_refused, tryon_loras):
    tryon_run(*batch, "--lora", tryon_loras["lora"])
    a = wardrobe_copy / "out" / "a.png"
    before = a.read_bytes()
    for flags in (
        ["--lora", tryon_loras["lora"], "--seed", 1],
        ["--lora", tryon_loras["lora"], "--guidance_scale", 9, "--height", 128],
        ["--lora", tryon_loras["lora"], "--no-repaint"],
        ["--lora", tryon_loras["lora"], "--lora_scale", 0.5],
        ["--lora", tryon_loras["zero"]],
        ["--lora", tryon_loras["lora"], "--lora", tryon_loras["zero"]],
    ):
        assert f"--output {a} exists and was made otherwise" in tryon_refused(*batch, *flags)
    # The same LoRA in another place is the same LoRA.
    shutil.copytree(tryon_loras["lora"], wardrobe_copy / "moved")
    assert "3 of 3 pictures are drawn already" in tryon_run(*batch, "--lora", wardrobe_copy / "moved")
    shutil.copy(wardrobe_copy / "full-person.png", wardrobe_copy / "upper-person.png")
    assert f"--output {a} exists" in tryon_refused(*batch, "--lora", tryon_loras["lora"])
    assert a.read_bytes() == before
    assert (
        "3 of 3 rows drawn" in tryon_run(*batch, "--lora", tryon_loras["lora"], "--overwrite")
        and a.read_bytes() != before
    )


def test_a_batch_replaces_no_strangers_picture(batch, wardrobe_copy, tryon_refused):
    (wardrobe_copy / "out").mkdir()
    shutil.copy(wardrobe_copy / "upper-mask.png", wardrobe_copy / "out" / "b.png")
    message = tryon_refused(*batch)
    assert f"--output {wardrobe_copy / 'out' / 'b.png'} exists and was made otherwise" in message
    assert names(wardrobe_copy / "out") == ["b.png"]


def test_a_row_that_fails_does_not_stop_the_others(batch, wardrobe_copy, tryon_run):
    """A file whose header is good, and which ends in the middle."""
    whole = (wardrobe_copy / "lower-person.png").read_bytes()
    (wardrobe_copy / "lower-person.png").write_bytes(whole[: len(whole) // 2])
    output = tryon_run(*batch, code=1)
    assert "2 of 3 rows drawn into" in output and names(wardrobe_copy / "out") == [NAMES[0], "a.png"]
    why = f"b.png: the person {wardrobe_copy / 'lower-person.png'}: not readable as a picture"
    lines = output.splitlines()
    assert sum(line.startswith(why) for line in lines) == 1
    assert lines[-1].startswith(f"tryon: 1 of 3 rows failed, first {why}")
    (wardrobe_copy / "lower-person.png").write_bytes(whole)
    assert "2 of 3 pictures are drawn already" in tryon_run(*batch) and names(wardrobe_copy / "out") == NAMES


def test_a_disk_that_is_full_fails_row_by_row(batch, wardrobe_copy, tryon_run, monkeypatch):
    stop_after(1, monkeypatch, OSError(28, "No space left on device"))
    message = tryon_run(*batch, code=1)
    assert "2 of 3 rows failed, first b.png: [Errno 28] No space left on device" in message
    assert names(wardrobe_copy / "out") == ["a.png"]


def test_tables_that_are_refused(wardrobe_copy, tryon_refused, tryon_misused):
    def told(*rows: str, more: tuple[object, ...] = ()) -> str:
        return tryon_refused("--batch", table(wardrobe_copy, *rows), "--output", wardrobe_copy / "out", *more)

    row = "upper-person.png,upper-garment.png,upper-mask.png,,,"
    assert f"--output {wardrobe_copy / 'out' / 'a.png'} would replace another result" in told(
        f"{row}a.png", f"{row}a.png"
    )
    assert f"--output {wardrobe_copy / 'out' / 'A.png'} would replace another" in told(f"{row}a.png", f"{row}A.png")
    message = told(f"{row}a.png", f"{row}a-pair.png", more=("--save_pair",))
    assert f"--output {wardrobe_copy / 'out' / 'a-pair.png'} would replace another result" in message
    assert "line 2: neither mask nor garment_type" in told("upper-person.png,upper-garment.png,,,,")
    assert "has no rows" in told()
    # A picture that no row reads, and that is not of this command.
    message = tryon_refused("--batch", table(wardrobe_copy, f"{row}lower-mask.png"), "--output", wardrobe_copy)
    assert "lower-mask.png exists" in message
    assert "no such file" in tryon_refused("--batch", wardrobe_copy / "none.csv", "--output", wardrobe_copy / "out")
    assert not (wardrobe_copy / "out").exists()


def test_a_batch_never_writes_over_what_its_rows_read(wardrobe_copy, tryon_refused):
    row = "upper-person.png,upper-garment.png,upper-mask.png,,,"
    before = (wardrobe_copy / "upper-mask.png").read_bytes()
    flags = [
        "--batch",
        table(wardrobe_copy, f"{row}upper.png"),
        "--output",
        wardrobe_copy,
        "--save_mask",
        "--overwrite",
    ]
    assert "would replace the mask that is read" in tryon_refused(*flags)
    assert (wardrobe_copy / "upper-mask.png").read_bytes() == before


def test_captions_of_a_table_that_are_not_used_are_noted(batch, wardrobe_copy, tryon_run):
    table(wardrobe_copy, "upper-person.png,upper-garment.png,upper-mask.png,,red,a.png")
    assert "note      captions are not used" in tryon_run(*batch)

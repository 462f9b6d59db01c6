"""What is no data: leftovers of other programs, and git-lfs pointers."""

from __future__ import annotations

from pathlib import Path

import pytest

from training_run.not_data import check_no_pointer, is_left_behind, is_no_data, pointer_fault, why_damaged

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"9f" * 32 + b"\nsize 1450000000\n"


@pytest.mark.parametrize(
    "pointer",
    [
        POINTER,
        POINTER.replace(b"\n", b"\r\n"),
        POINTER.replace(b"git-lfs", b"hawser"),
        POINTER.replace(b"\noid", b"\next-0-foo sha256:" + b"12" * 32 + b"\noid"),
    ],
)
def test_a_pointer_is_named_with_its_size_and_what_fetches_it(tmp_path: Path, pointer: bytes):
    file = tmp_path / "model.safetensors"
    file.write_bytes(pointer)
    with pytest.raises(ValueError, match=r"model\.safetensors.*1,450,000,000.*git lfs pull"):
        check_no_pointer(file)


@pytest.mark.parametrize("stored", [b"", b"version 2\nsize 3\n", b"\n" + POINTER, b"PAR1" + POINTER])
def test_other_files_are_no_pointers(stored: bytes):
    assert pointer_fault(stored) is None


@pytest.mark.parametrize(
    "name", "._a.parquet ~$a.parquet .DS_Store Thumbs.db Desktop.ini .ipynb_checkpoints/a.parquet @eaDir/a.png".split()
)
def test_what_other_programs_leave_is_told_from_data(name: str):
    assert is_left_behind(Path("data", name), Path("data"))
    assert is_no_data(Path("data", name), Path("data"))


def test_data_is_not_taken_for_left_behind_whatever_folder_it_lies_in():
    assert not is_left_behind(Path("/home/.cache/@eaDir/data/_a.parquet"), Path("/home/.cache/@eaDir"))
    assert not is_no_data(Path("/home/.cache/a.parquet"))
    assert is_no_data(Path("/home/.cache/.a.parquet"))
    assert not is_left_behind(Path("/home/.git"))  # which somebody would miss


@pytest.mark.parametrize(
    ("stored", "why"), [(b"", "empty"), (b"\n<!DOCTYPE html>", "web page"), (POINTER, "git lfs pull"), (b"PAR1", None)]
)
def test_what_stands_in_the_place_of_a_binary_file_is_told(tmp_path: Path, stored: bytes, why: str | None):
    (tmp_path / "a.parquet").write_bytes(stored)
    told = why_damaged(tmp_path / "a.parquet")
    assert told is why if why is None else why in str(told)

"""Checkpoint folders: complete or absent, whatever fails; damage is named; state comes back bit for bit."""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from training_run import checkpoints
from training_run.atomic import clear_leftovers, replacing
from training_run.output_dir import prepare_output_dir
from training_run.state import FREE, changed, random_state, read_state, set_random_state, write_state

STATE = {"step": 3, "weights": torch.arange(40_000.0), "groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]}


def save(folder: Path, step: int) -> Path:
    """A checkpoint of 160 kB, several files and a folder."""
    with checkpoints.staged(folder / f"checkpoint-{step}") as draft:
        write_state(draft, {**STATE, "step": step})
        (draft / "transformer").mkdir()
        (draft / "transformer" / "config.json").write_text("{}")
    return folder / f"checkpoint-{step}"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ------------------------------------------------------------------------------------------------- complete or absent


def test_a_checkpoint_has_its_files_and_a_manifest_of_them(tmp_path):
    made = save(tmp_path, 3)
    assert names(tmp_path) == {"checkpoint-3"}
    listed = json.loads((made / "manifest.json").read_text())["files"]
    assert sorted(listed) == ["training_state.json", "training_state.safetensors", "transformer/config.json"]
    assert listed["transformer/config.json"] == {
        "bytes": 2,
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",  # sha256sum of {}
    }
    checkpoints.verify(made)
    (made / ".DS_Store").write_bytes(b"Bud1")  # somebody looked into it
    (made / "transformer" / "._config.json").write_bytes(b"\0\5\x16\7")
    checkpoints.verify(made)
    assert checkpoints.newest_whole(tmp_path) == made


def test_what_raises_while_saving_leaves_nothing(tmp_path):
    whole = save(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt), checkpoints.staged(tmp_path / "checkpoint-2") as draft:
        (draft / "half").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == {"checkpoint-1"}
    checkpoints.verify(whole)


def test_a_checkpoint_takes_the_place_of_one_of_the_same_step(tmp_path):
    first = save(tmp_path, 1)
    (first / "training_state.json").write_text("damaged")
    assert save(tmp_path, 1) == first
    checkpoints.verify(first)
    assert names(tmp_path) == {"checkpoint-1"}


def test_the_oldest_go_and_never_the_newest(tmp_path):
    for step in (2, 10, 7, 30):
        save(tmp_path, step)
    checkpoints.prune(tmp_path / "checkpoint-7", 2)
    assert names(tmp_path) == {"checkpoint-7", "checkpoint-30"}
    checkpoints.prune(tmp_path / "checkpoint-7", None)
    assert names(tmp_path) == {"checkpoint-7", "checkpoint-30"}


def test_what_a_killed_run_was_doing_is_no_checkpoint_and_is_cleared(tmp_path):
    for name in (".saving-checkpoint-4", ".removing-checkpoint-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("part")
    assert checkpoints.checkpoints_in(tmp_path) == [] and checkpoints.newest_whole(tmp_path) is None
    clear_leftovers(tmp_path)
    assert names(tmp_path) == set()


def assert_full_disk_loses_nothing(folder: Path) -> bool:
    """Save on a disk that may be too small; returns whether it was. The checkpoint before it is whole either way."""
    try:
        save(folder, 2)
    except OSError as error:
        assert error.errno in (errno.ENOSPC, errno.EFBIG)
        assert "checkpoint-2 could not be written" in str(error) and "--checkpoints_total_limit" in str(error)
        assert names(folder) == {"checkpoint-1"}
        checkpoints.verify(folder / "checkpoint-1")
        assert read_state(folder / "checkpoint-1")["step"] == 1
        return True
    assert names(folder) == {"checkpoint-1", "checkpoint-2"}
    checkpoints.verify(folder / "checkpoint-2")
    return False


@pytest.fixture
def small_files() -> Iterator[None]:
    """Lets the test lower how large a file may grow; the system then refuses to write on, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, before)


def test_a_write_that_fails_at_any_size(tmp_path, small_files):
    save(tmp_path, 1)
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    failed = 0
    for limit in [*range(0, 2000, 50), *range(2000, 170_000, 8000)]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            failed += assert_full_disk_loses_nothing(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert failed == 60  # at all of these but the last, which is larger than the largest file
    assert names(tmp_path) == {"checkpoint-1", "checkpoint-2"}


def test_a_model_that_its_own_library_cannot_write(tmp_path, small_files):
    """safetensors tells of a full disk by an error of its own, which is no ``OSError``."""
    save(tmp_path, 1)

    def model(folder: Path) -> None:
        folder.mkdir()
        save_file({"weight": torch.zeros(10_000)}, folder / "model.safetensors")

    def save_model() -> None:
        with checkpoints.staged(tmp_path / "checkpoint-2") as draft, replacing(draft / "transformer") as inner:
            model(inner)

    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(OSError, match=r"checkpoint-2 could not be written: .*File too large"):
            save_model()
        refusal = pytest.raises(OSError, match=r"final could not be written: .*File too large")
        with refusal, replacing(tmp_path / "final") as draft:
            model(draft)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert names(tmp_path) == {"checkpoint-1"}
    save_model()
    checkpoints.verify(tmp_path / "checkpoint-2")


def test_a_disk_that_is_full_after_any_page(tmp_path):
    """A real file system of 4 kB more each time, until a checkpoint fits."""
    disk, failed = tmp_path / "disk", 0
    disk.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "none", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs more rights than this process has")
    try:
        save(disk, 1)
        used = subprocess.check_output(["df", "--output=used", "-k", disk], text=True).split()[-1]
        for more in range(0, 400, 4):
            subprocess.run(["mount", "-o", f"remount,size={int(used) + more}k", disk], check=True)
            if not assert_full_disk_loses_nothing(disk):
                break
            failed += 1
        assert 38 <= failed <= 60  # pages of a checkpoint of 160 kB
    finally:
        subprocess.run(["umount", disk], check=True)


# --------------------------------------------------------------------------------------------------------------- damage


def damages(folder: Path) -> Iterator[tuple[str, Path]]:
    """Copies of ``folder``, each damaged in one way, and what to say of them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())

    def copy(what: str) -> Path:
        target = folder.parent / what / folder.name
        shutil.copytree(folder, target)
        return target

    for number, file in enumerate(files):
        name = file.relative_to(folder)
        gone = copy(f"missing-{number}")
        (gone / name).unlink()
        yield f"{name} is missing|no readable manifest.json", gone
        short = copy(f"truncated-{number}")
        (short / name).write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        yield f"{name} is damaged|no readable manifest.json", short
        flipped = copy(f"flipped-{number}")
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        (flipped / name).write_bytes(content)
        yield "is damaged|is missing|no readable manifest.json", flipped
    added = copy("added")
    (added / "transformer" / "model.safetensors").write_text("another's")
    yield "model.safetensors .*was not written with this checkpoint", added


def test_every_damage_is_refused_by_name(tmp_path):
    seen = 0
    for said, folder in damages(save(tmp_path, 5)):
        with pytest.raises(ValueError, match=said):
            checkpoints.verify(folder)
        assert checkpoints.newest_whole(folder.parent) is None
        seen += 1
    assert seen == 13  # three ways for each of four files, and a file too many


def test_latest_is_the_newest_whole_one_and_says_what_it_passes_over(tmp_path, caplog):
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "checkpoint-3" / "training_state.safetensors").unlink()
    assert checkpoints.newest_whole(tmp_path) == tmp_path / "checkpoint-2"
    assert "training_state.safetensors is missing" in caplog.text


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"files": 3}', '{"files": {"a": 1}}', "\0"])
def test_a_manifest_of_nonsense(tmp_path, manifest):
    made = save(tmp_path, 1)
    (made / "manifest.json").write_text(manifest)
    with pytest.raises(ValueError, match=r"manifest.json|is missing"):
        checkpoints.verify(made)


# ---------------------------------------------------------------------------------------------------------------- state


def test_an_optimizers_state_comes_back_bit_for_bit(tmp_path):
    torch.manual_seed(0)
    layer = torch.nn.Linear(7, 5)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1 / 3, betas=(0.9, 0.95))
    for _ in range(3):
        layer(torch.randn(2, 7)).square().sum().backward()
        optimizer.step()
    write_state(tmp_path, {"optimizer": optimizer.state_dict(), "tiny": 5e-324, "none": None, "nan": float("nan")})
    read = read_state(tmp_path)
    again = torch.optim.AdamW(layer.parameters(), lr=1.0)
    again.load_state_dict(read["optimizer"])
    assert again.param_groups[0]["lr"] == 1 / 3 and read["tiny"] == 5e-324 and read["none"] is None
    for ours, theirs in zip(again.state.values(), optimizer.state.values(), strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_random_states_go_on_where_they_were(tmp_path):
    random.seed(3)
    np.random.seed(4)
    torch.manual_seed(5)
    np.random.standard_normal()  # leaves a second one behind
    write_state(tmp_path, random_state())
    drawn = [random.gauss(0, 1), float(np.random.standard_normal()), torch.rand(3).tolist()]
    for _ in range(2):
        random.random(), np.random.rand(), torch.rand(1)
    set_random_state(read_state(tmp_path))
    assert [random.gauss(0, 1), float(np.random.standard_normal()), torch.rand(3).tolist()] == drawn


def test_what_cannot_be_saved_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"optimizer\.hook: a function cannot be saved"):
        write_state(tmp_path, {"optimizer": {"hook": lambda: None}})


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": {"$tensor": "nowhere"}}', "[" * 100_000])
def test_a_state_of_nonsense(tmp_path, text):
    write_state(tmp_path, {"a": torch.ones(1)})
    (tmp_path / "training_state.json").write_text(text)
    with pytest.raises(ValueError, match="training state"):
        read_state(tmp_path)


def test_only_changes_that_matter_are_told():
    before = {"seed": 1, "learning_rate": 0.1, "logging_steps": 1, "gone": 2, "types": [1, 2]}
    now = {"seed": 2, "learning_rate": 0.1, "logging_steps": 9, "new": 3, "types": (1, 2)}
    assert changed(before, now, FREE) == ["seed was 1 and is 2"]  # the others are flags of one version only


def test_facts_that_one_side_lacks_have_changed():
    facts = {"rows": 3, "fingerprint": "ab", "types": [1, 2]}
    assert changed(facts, dict(facts)) == []
    assert changed({"rows": 3}, {"rows": 3, "new": None}) == []  # an option of a later version that is not used
    assert changed({}, {"rows": 3}) == ["rows was 'not known' and is 3"]
    assert changed({"rows": 3, "seed": 1}, {"seed": 2}) == ["rows was 3 and is 'not known'", "seed was 1 and is 2"]


def test_what_a_killed_process_was_writing_goes_with_the_next_writing(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead, other = tmp_path / f".saving-{ended.pid}-model", tmp_path / f".saving-{os.getppid()}-model"
    for folder in (dead, other):
        folder.mkdir()
    with replacing(tmp_path / "model") as draft:
        draft.write_text("whole")
    assert not dead.exists() and other.exists()  # which may still be at it
    assert (tmp_path / "model").read_text() == "whole"


def test_overwriting_a_run_leaves_the_rows_that_its_successor_has_noted(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    for name in ("run.json", "logs/losses.jsonl", "logs/bad_rows-train.jsonl"):
        (tmp_path / name).write_text("{}")
    flags = {"output_dir": str(tmp_path), "overwrite_output_dir": True, "resume_from_checkpoint": None}
    prepare_output_dir(argparse.Namespace(**flags))
    assert [path.name for path in tmp_path.rglob("*.json*")] == ["bad_rows-train.jsonl"]

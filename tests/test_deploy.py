"""The Dockerfile and the SkyPilot task: what can be told without Docker, a cloud or their tools."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deepfashion_training import run_arguments
from deepfashion_training.embedded.wardrobe import write_wardrobe
from training_run.checkpoints import newest_whole, seal

ROOT = Path(__file__).resolve().parents[1]
TASK = yaml.safe_load((ROOT / "deploy" / "skypilot.yaml").read_text("utf-8"))
TRAINER = "deepfashion_training/train_deepfashion_lora.sh"


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile: name and words of each, lines that go on put together."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text("utf-8"), flags=re.M).replace("\\\n", " ")
    return [(line.split()[0], " ".join(line.split()[1:])) for line in text.splitlines() if line.strip()]


def test_the_image_is_layered_and_has_no_root_and_no_secrets() -> None:
    found = instructions()
    names = [name for name, _ in found]
    assert names[0] == "FROM" and "ADD" not in names and "ARG" not in names
    copies = [words for name, words in found if name == "COPY"]
    assert copies == ["requirements.txt ./", ". ./"]  # packages stay when the code changes
    install = next(place for place, (_, words) in enumerate(found) if "pip install" in words)
    assert names.index("COPY") < install < len(names) - 1 - names[::-1].index("COPY")
    assert dict(found)["USER"] not in ("root", "0") and names.index("USER") < names.index("ENTRYPOINT")
    said = " ".join(words for _, words in found)
    assert not re.search(r"(?i:token|secret|password)|\bhf_\w", said)
    assert "--no-cache-dir" in said and "rm -rf /var/lib/apt/lists" in said
    settings = dict(pair.split("=") for pair in dict(found)["ENV"].split())
    (volume,) = json.loads(dict(found)["VOLUME"])
    assert settings["HF_HOME"].startswith(f"{volume}/")
    assert "--shm-size" in (ROOT / "Dockerfile").read_text("utf-8")


def test_versions_of_the_image_are_those_of_the_requirements() -> None:
    from training_run.guards import OLDEST_DRIVER

    image = dict(instructions())["FROM"]
    major, minor = re.search(r"cuda:(\d+)\.(\d+)", image).groups()  # type: ignore[union-attr]
    assert (major, minor) == ("13", "0") and int(major) in OLDEST_DRIVER
    assert re.search(r"^torch==2\.13\.0$", (ROOT / "requirements.txt").read_text("utf-8"), re.M)  # whose CUDA is 13.0
    asked = re.search(r"bitsandbytes==\S+", " ".join(words for _, words in instructions()))
    assert asked and asked[0] in (ROOT / "requirements-dev.txt").read_text("utf-8").split()
    assert TASK["resources"]["image_id"] == f"docker:{image}"


def in_image(path: str) -> bool:
    """Whether ``path`` is sent to Docker: the last pattern that fits it, or a folder of it, decides."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines():
        pattern, keeps = line.removeprefix("!"), line.startswith("!")
        places = [path, *map(str, Path(path).parents)]
        if pattern and not line.startswith("#"):
            fits = [pattern, pattern.removeprefix("**/")] if pattern.startswith("**/") else [pattern]
            parts = [part for place in places for part in (place, Path(place).name)] if len(fits) == 2 else places
            if any(fnmatch.fnmatch(part, fit) for part in parts if part != "." for fit in fits):
                sent = keeps
    return sent


def test_what_the_image_needs_is_sent_and_nothing_private() -> None:
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    needed = [path for path in kept if path.startswith(("training_run/", "deepfashion_training/"))]
    assert needed and all(map(in_image, [*needed, "train_flux_inpaint.py", "requirements.txt"]))
    for private in ("outputs/full/run.json", ".git/config", ".env", "token", "pairs/data/a.parquet", ".venv/bin/python",
                    "training_run/__pycache__/a.pyc", "deepfashion_training/.env", "tests/conftest.py"):  # fmt: skip
        assert not in_image(private), private


def command(**environment: str) -> list[str]:
    """What the task starts, as words."""
    line = next(line for line in TASK["run"].replace("\\\n", " ").splitlines() if TRAINER in line)
    flags = {"$FLAGS": TASK["envs"]["FLAGS"]} | environment
    return shlex.split(re.sub(r"\$\w+", lambda name: flags.get(name[0], "x"), line))


def test_the_task_trains_with_flags_that_are_known_and_goes_on_from_the_newest_checkpoint() -> None:
    words = command()
    assert words[:2] == ["bash", TRAINER] and (ROOT / TRAINER).is_file()
    args, _ = run_arguments.parse(words[2:], load=False)
    assert (args.preset, args.resume_from_checkpoint, args.output_dir) == ("h100", "latest", "x/out")
    assert args.save_every_minutes > 0
    assert TASK["resources"]["accelerators"] == "H100:1" and TASK["secrets"] == {"HF_TOKEN": None}
    assert TASK["file_mounts"]["/bucket"]["mode"] == "MOUNT"


@pytest.mark.parametrize("part", ["setup", "run"])
def test_shell_of_the_task_is_sound(part: str, tmp_path: Path) -> None:
    (tmp_path / "task.sh").write_text("#!/usr/bin/env bash\n" + TASK[part])
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    check = [checker] if checker else ["bash", "-n"]
    done = subprocess.run([*check, str(tmp_path / "task.sh")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def start(folder: Path, machine: str, flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The task's ``run`` on a machine whose own disk is new, beside a bucket that stays."""
    own = {
        "LOCAL": str(folder / machine),
        "KEPT": str(folder / "bucket"),
        "RUN": "mine",
        "FLAGS": flags,
        "EVERY": "0.2",
    }
    return subprocess.run(
        ["bash", "-c", TASK["run"]], cwd=environment.pop("cwd", ROOT), capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "EVERY": "0.2", **own, **environment},
    )  # fmt: skip


#: Makes a checkpoint as the trainer does: under a hidden name, sealed, renamed.
MAKE = f"""#!{sys.executable}
import pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
from training_run.checkpoints import seal
place = pathlib.Path(sys.argv[1])
draft = place.with_name(".saving")
(draft / "sub").mkdir(parents=True)
(draft / "sub" / "a").write_text(place.name)
seal(draft)
draft.rename(place)
"""


def test_the_bucket_gets_whole_checkpoints_and_gives_them_back(tmp_path: Path) -> None:
    """A stand-in for the trainer finds what was kept, and keeps two checkpoints; the machine is lost meanwhile."""
    stand_in = tmp_path / TRAINER
    stand_in.parent.mkdir()
    stand_in.write_text(
        'while [ "$1" != --output_dir ]; do shift; done\n'
        'cd "$2"; ls > found; number=$(ls -d checkpoint-* 2>/dev/null | wc -l)\n'
        'for step in 1 2; do make "$PWD/checkpoint-$((number + step))"; sleep 0.5; done\n'
        'rm -rf "checkpoint-$number"; echo "{}" > run.json; exit "$CODE"\n'
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "make").write_text(MAKE)
    (tmp_path / "bin" / "make").chmod(0o755)
    there = {"cwd": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CODE": "1"}
    kept = tmp_path / "bucket" / "mine" / "out"
    assert start(tmp_path, "first", "", **there).returncode == 1  # the trainer's own code
    assert (tmp_path / "first" / "out" / "found").read_text() == "found\n"  # a first start finds nothing
    assert newest_whole(kept) == kept / "checkpoint-2"
    (kept / "checkpoint-2" / "manifest.json").unlink()  # a machine that was lost while it copied
    assert start(tmp_path, "second", "", **{**there, "CODE": "0"}).returncode == 0
    found = (tmp_path / "second" / "out" / "found").read_text().split()
    assert found == ["checkpoint-1", "checkpoint-2", "found", "run.json"]
    assert newest_whole(kept) == kept / "checkpoint-4" and (kept / "checkpoint-4" / "sub" / "a").read_text()
    assert sorted(path.name for path in kept.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-3", "checkpoint-4"]


def test_half_a_copy_of_a_checkpoint_is_made_anew(tmp_path: Path) -> None:
    """The bucket fails once while a file is copied: no manifest is written, and the next look copies all."""
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "a").write_text("1")
    seal(checkpoint)
    put = re.search(r"^put\(\) \{.*?^\}", TASK["run"], re.M | re.S)
    assert put
    script = f"set -euo pipefail\n{put[0]}\nput checkpoint-1 kept manifest.json || echo failed"
    fails = "cp() { false; }\n" + script
    for text, said, whole in ((fails, "failed\n", False), (script, "", True)):
        done = subprocess.run(["bash", "-c", text], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, said), done.stderr
        assert (tmp_path / "kept" / "manifest.json").exists() == whole
    (checkpoint / "a").write_text("2")  # of the same step, made anew
    seal(checkpoint)
    subprocess.run(["bash", "-c", script], cwd=tmp_path, check=True)
    assert (tmp_path / "kept" / "a").read_text() == "2"


@pytest.mark.long
def test_a_run_goes_on_on_another_machine(tmp_path: Path) -> None:
    write_wardrobe(tmp_path / "wardrobe", rows=12, size=(64, 48))
    # Schedules and a mixture that moves depend on --max_train_steps.
    flags = "--quick-test --embedded --height 64 --width 48 --lr_scheduler constant --balance_cloth_types "
    flags += "--validation_steps 0 "
    flags += f"--evaluate_samples 0 --report_to none --checkpointing_steps 2 --dataset_name {tmp_path / 'wardrobe'}"
    for machine, steps, resumed in (("first", 2, None), ("second", 4, 2)):
        done = start(tmp_path, machine, f"{flags} --max_train_steps {steps}")
        assert done.returncode == 0, done.stderr
        found = json.loads((tmp_path / "bucket" / "mine" / "out" / "run.json").read_text())
        assert (found["step"], found["resumed_from_step"], found["status"]) == (steps, resumed, "done")
    kept = tmp_path / "bucket" / "mine" / "out"
    assert newest_whole(kept) == kept / "checkpoint-4" and (kept / "pytorch_lora_weights.safetensors").is_file()

"""The README's commands, as somebody pastes them after `git clone`: in one shell, one after the other."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from deepfashion_training import train_deepfashion_lora as wrapper

ROOT = Path(__file__).resolve().parents[1]
#: What each line may call, and whether it is there before the virtual environment is active.
COMMANDS = {"make": True, "git": True, "bash": True, "hf": False, "pip": False, "python": False, "accelerate": False}
PRESETS = {"--quick-test": "quick_test", "--h100": "h100", "--low-vram": "low_vram"}


def blocks() -> str:
    """All bash blocks of the README, as one script."""
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.M))


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Every command that the script calls, by what stands in for it: folder, name and arguments."""
    clone = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        if path.name not in (".venv", ".git", "outputs"):
            (clone / path.name).symlink_to(path)
    log, before, within = clone / "called.log", clone / "before", clone / ".venv" / "bin"
    for folder, names in ((before, [name for name, early in COMMANDS.items() if early]), (within, COMMANDS)):
        folder.mkdir(parents=True)
        for name in names:
            stand_in = folder / name
            stand_in.write_text(f'#!/bin/sh\n{{ pwd; echo {name}; printf "%s\\n" "$@"; echo; }} >> {log}\n')
            stand_in.chmod(0o755)
    (within / "activate").write_text(f'PATH="{within}:$PATH"\n')
    environment = {"PATH": str(before), "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(
        ["/bin/bash", "-euc", blocks()], cwd=clone, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    calls = [block.split("\n") for block in log.read_text("utf-8").strip().split("\n\n")]
    assert {call[0] for call in calls} == {str(clone)}  # nobody is left in another folder
    return [call[1:] for call in calls]


def training(call: list[str]) -> list[str] | None:
    """Arguments for the wrapper of a command that trains; None for another one."""
    place = next((k for k, part in enumerate(call) if "train_deepfashion_lora." in part), None)
    if place is None:
        return None
    assert (ROOT / call[place]).is_file(), call
    chosen = [PRESETS[part] for part in call if part in PRESETS]
    return [*(["--preset", chosen[0]] if chosen else []), *(part for part in call[place + 1 :] if part not in PRESETS)]


def module(call: list[str]) -> tuple[str, list[str]] | None:
    """Module and arguments of `python -m` or `accelerate launch -m`; None for another command."""
    return (call[call.index("-m") + 1], call[call.index("-m") + 2 :]) if "-m" in call else None


def test_every_line_is_found_in_the_clone_and_knows_its_flags(called):
    trained = [argv for argv in map(training, called) if argv is not None]
    assert len(trained) >= 8
    for argv in trained:
        if not any(part.startswith("--upstream") for part in argv):  # a checkout that is not here
            wrapper.resolve(argv)
    modules = [found for found in map(module, called) if found is not None]
    assert len(modules) >= 8
    for name, argv in modules:
        importlib.import_module(name).build_parser().parse_args(argv)


def test_what_a_line_reads_an_earlier_one_has_made(called):
    made: set[str] = set()
    for call in called:
        argv = training(call)
        if argv is not None and "--plan" not in argv and "--upstream_check" not in argv:
            preset = argv[argv.index("--preset") + 1] if "--preset" in argv else "full"
            folder = argv[argv.index("--output_dir") + 1] if "--output_dir" in argv else f"outputs/{preset}"
            if "--output_dir" in argv:
                assert (folder in made) == ("--resume_from_checkpoint" in argv), shlex.join(call)
            made.add(folder)
        if found := module(call):
            flags = dict(zip(found[1], found[1][1:], strict=False))
            for flag in ("--lora", "--data"):
                assert flag not in flags or flags[flag] in made, shlex.join(call)
            if "--output_dir" in flags:
                assert flags["--output_dir"] not in made or "prepare" in found[0], shlex.join(call)  # finds it done
                made.add(flags["--output_dir"])

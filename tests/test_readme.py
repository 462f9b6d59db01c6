"""The commands of README and docs, as somebody pastes them after `git clone`: in one shell, one after the other."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
from pathlib import Path
from unittest import mock

import pytest

from deepfashion_training import run_arguments

ROOT = Path(__file__).resolve().parents[1]
#: In the order in which they are read: what a later page uses, an earlier one has made.
PAGES = ["README.md", *(f"docs/{name}.md" for name in ("data", "training", "evaluation", "upstream", "plan"))]
#: What a line may call, and whether it is there before the virtual environment is active.
COMMANDS = {
    **dict.fromkeys(("make", "git", "bash", "docker", "sky"), True),
    **dict.fromkeys(("hf", "pip", "python", "accelerate"), False),
}
PRESETS = {"--quick-test": "quick_test", "--h100": "h100", "--low-vram": "low_vram"}
LINK = re.compile(r"\]\(([^)#]+)")
#: What the test appends to a line of *Without a GPU*, so that it takes seconds. Everything else is as pasted.
SHORTER = {
    "train_deepfashion_lora.sh": [
        "--max_train_steps",
        "2",
        "--evaluate_samples",
        "0",
        "--validation_steps",
        "0",
        "--no-cache_latents",
    ],
    "embedded.wardrobe": ["--rows", "24"],
    "evaluate": ["--limit", "3"],
}


def blocks(page: str, below: str = "") -> list[str]:
    """Bash blocks of a page, or of it from the line ``below`` on."""
    text = (ROOT / page).read_text("utf-8")
    return re.findall(r"^```bash\n(.*?)^```", text[text.index(below) :], re.DOTALL | re.M)


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> list[list[str]]:
    """Every command that the pages call, recorded by a script in the place of each program: name and arguments."""
    clone = tmp_path_factory.mktemp("clone")
    for path in ROOT.iterdir():
        if path.name not in (".venv", ".git", "outputs"):
            (clone / path.name).symlink_to(path)
    log, before, within = clone / "called.log", clone / "before", clone / ".venv" / "bin"
    for folder, names in ((before, [name for name, early in COMMANDS.items() if early]), (within, COMMANDS)):
        folder.mkdir(parents=True)
        for name in names:
            recorder = folder / name
            recorder.write_text(f'#!/bin/sh\n{{ pwd; echo {name}; printf "%s\\n" "$@"; echo; }} >> {log}\n')
            recorder.chmod(0o755)
    (within / "activate").write_text(f'PATH="{within}:$PATH"\n')
    script = "\n".join(block for page in PAGES for block in blocks(page))
    environment = {"PATH": str(before), "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(
        ["/bin/bash", "-euc", script], cwd=clone, env=environment, capture_output=True, text=True, timeout=60
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
            with mock.patch.object(run_arguments, "_of_start", return_value={}):  # nor are LoRAs to start from
                run_arguments.parse(argv)
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
            for flag in ("--lora", "--dataset_name"):
                fetched = flags.get(flag, "").startswith("ByteDance/") or flags.get(flag) in ("DressCode", "VITON-HD")
                made_or_fetched = flags.get(flag) in made or fetched
                assert flag not in flags or made_or_fetched or "prepare" in found[0], shlex.join(call)
            if "--output_dir" in flags:
                assert flags["--output_dir"] not in made or "prepare" in found[0], shlex.join(call)  # finds it done
                made.add(flags["--output_dir"])


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md", "docs/flags.md", "docs/limits.md", "docs/architecture.md"])
def test_links_lead_somewhere(page):
    for link in LINK.findall((ROOT / page).read_text("utf-8")):
        assert "://" in link or ((ROOT / page).parent / link).exists(), link


def test_the_readme_is_a_page():
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= 950


@pytest.mark.long
def test_what_needs_no_gpu_runs_as_pasted(tmp_path):
    """The lines of *Without a GPU*, in a folder that holds what a clone holds."""
    for path in ROOT.iterdir():
        if path.name not in (".git", "outputs"):
            (tmp_path / path.name).symlink_to(path)
    (lines,) = blocks("README.md", below="## Without a GPU")
    for line in lines.splitlines():
        words = shlex.split(line, comments=True)
        extra = next(extra for name, extra in SHORTER.items() if any(name in word for word in words))
        done = subprocess.run(
            [str(ROOT / ".venv" / "bin" / "python") if words[0] == "python" else words[0], *words[1:], *extra],
            cwd=tmp_path, capture_output=True, text=True, timeout=900,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "outputs" / "small" / "pytorch_lora_weights.safetensors").is_file()
    assert (tmp_path / "small_report" / "report.html").is_file()

"""Take one guard out at a time: does the test that is meant for it fail? Exit 1 when one does not.

    python benchmarks/guards.py [NAME ...]

Clones the last commit of the repository for each guard, changes one place in it, and runs one test there, which passes
as it is and has to fail then. Ten minutes for all of them on two cores.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRAINER, CHECKPOINTS, GUARDS = "train_flux_inpaint.py", "training_run/checkpoints.py", "training_run/guards.py"
STOPPING, STATE = "training_run/stopping.py", "training_run/state.py"
LAUNCHER = "deepfashion_training/train_deepfashion_lora.sh"
EXACT, FOLDERS = "tests/test_exact_resume.py", "tests/test_checkpoints.py"
#: What is taken out: the file, what stands there, what stands there instead, and the test that has to fail.
REMOVED = {
    "hash of a file": (CHECKPOINTS, "if _hash(there[name]) != digest:", "if False:", f"{FOLDERS} -k damage"),
    "size of a file": (CHECKPOINTS, "if found != size:", "if False:", f"{FOLDERS} -k damage_is"),
    "missing file": (CHECKPOINTS, "if name not in there:", "if False:", f"{FOLDERS} -k damage_is"),
    "file too many": (CHECKPOINTS, "if unknown := sorted(", "if unknown := 0 and sorted(", f"{FOLDERS} -k damage_is"),
    "removed before renamed": (
        CHECKPOINTS,
        "    seal(draft)\n    if final.exists():",
        "    for old in checkpoints_in(final.parent):\n        remove(old)\n    seal(draft)\n    if final.exists():",
        f"{FOLDERS} -k fails_at_any_size",
    ),
    "draft left behind": (
        CHECKPOINTS,
        "        shutil.rmtree(draft, ignore_errors=True)\n        raise _unwritable",
        "        raise _unwritable",
        f"{FOLDERS} -k fails_at_any_size",
    ),
    "written in place": (
        CHECKPOINTS,
        "    try:\n        draft.mkdir(parents=True)",
        "    try:\n        draft = final\n        draft.mkdir(parents=True)",
        f"{FOLDERS} -k raises_while_saving",
    ),
    "optimizer not restored": (
        TRAINER,
        "            part.load_state_dict(saved[name])",
        '            name == "optimizer" or part.load_state_dict(saved[name])',
        f"{EXACT} -k undisturbed_one[2-4",
    ),
    "random states not restored": (
        TRAINER,
        '        saved_state.set_random_state(saved["ranks"][accelerator.process_index]["random"])',
        "        pass",
        f"{EXACT} -k undisturbed_one[2-4",
    ),
    "losses not yet logged forgotten": (
        TRAINER,
        '            self.unlogged.copy_(saved["ranks"][self.accelerator.process_index]["unlogged"])',
        "            pass",
        f"{EXACT} -k undisturbed_one[2-4",
    ),
    "rows begin anew": (
        TRAINER,
        "return run, make_loader(rows, args, accelerator, run.step)",
        "return run, make_loader(rows, args, accelerator, 0)",
        f"{EXACT} -k undisturbed_one[2-4",
    ),
    "changed arguments": (
        "training_run/output_dir.py",
        "if told and not args.allow_changed_arguments:",
        "if False:",
        f"{EXACT} -k changed_arguments",
    ),
    "signal not heard": (
        STOPPING,
        "self.asked = self.asked or signum\n        if not",
        "self.asked = self.asked\n        if not",
        f"{EXACT} -k undisturbed_one[2-4",
    ),
    "launcher ended": (
        STOPPING,
        "prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)",
        "getpid()",
        "tests/test_launcher.py -k signal_reaches",
    ),
    "launcher passes nothing on": (
        LAUNCHER,
        "trap 'pass_on TERM' TERM",
        "trap '' TERM",
        "tests/test_launcher.py -k signal_reaches",
    ),
    "step not finite": (GUARDS, "if self.count > self.limit:", "if False:", "tests/test_guards.py -k none_may_be"),
    "step not finite is taken": (
        TRAINER,
        "        return not self.accelerator.reduce(wrong",
        "        return True or not self.accelerator.reduce(wrong",
        "tests/test_guards.py -k left_out",
    ),
    "memory": (
        TRAINER,
        "raise guards.out_of_memory(run.step + 1, args) from error",
        "raise",
        "tests/test_guards.py -k gpu_memory",
    ),
    "worker": (
        GUARDS,
        "        raise ValueError(\n            f\"a process",
        "        raise RuntimeError(\n            f\"a process",
        "tests/test_guards.py -k worker",
    ),
    "damaged base": (TRAINER, "    guards.check_base(", "    len(", "tests/test_guards.py -k damaged_base"),
    "LoRA not read back": (TRAINER, "    saved_state.loads_back(", "    id(", "tests/test_guards.py -k reads_back"),
    "B matrices of zero": (GUARDS, "if moved and still:", "if False:", "tests/test_guards.py -k learned_nothing"),
    "weights not finite": (GUARDS, "not tensor.isfinite().all()]", "False]", "tests/test_guards.py -k is_not_written"),
    "state of nonsense": (STATE, "except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError)",
                          "except OSError",
                          f"{FOLDERS} -k state_of_nonsense"),
    "pictures of 81 million pixels": (GUARDS, "> 64_000_000", "> 640_000_000", "tests/test_guards.py -k picture_that"),
}  # fmt: skip


def test_fails(name: str | None, test: str) -> tuple[bool, str]:
    """Whether ``test`` fails with the guard ``name`` taken out, or as it is, and the last line that it says."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
        if name is not None:
            file, there, instead, _ = REMOVED[name]
            text = (copy / file).read_text("utf-8")
            if text.count(there) != 1:
                raise SystemExit(f"{file} has {text.count(there)} places like {there!r}: bring REMOVED up to date")
            (copy / file).write_text(text.replace(there, instead), "utf-8")
        chosen, _, words = test.partition(" -k ")
        select = [part for part in ("-k", words.replace("[", " and ")) if words]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=no", "--durations=0"]
        environment = os.environ | {"PYTHON": sys.executable, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([*command, chosen, *select], cwd=copy, env=environment, capture_output=True, text=True)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{test} did not run: {done.stdout[-2000:]}")
    return done.returncode == 1, done.stdout.strip().splitlines()[-1]


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to take out: {', '.join(REMOVED)} (all)")
    names = parser.parse_args().names or list(REMOVED)
    missed = 0
    for test in sorted({REMOVED[name][3] for name in names}):
        failed, line = test_fails(None, test)
        print(f"as it is: {test}: {line}", flush=True)
        missed += failed
    for name in names:
        failed, line = test_fails(name, REMOVED[name][3])
        print(f"{name}: {'noticed' if failed else 'NOT NOTICED'} ({line})", flush=True)
        missed += not failed
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

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
TRUST, PICTURES = "training_run/trust.py", "deepfashion_training/images/pictures.py"
EXACT, FOLDERS = "tests/test_exact_resume.py", "tests/test_checkpoints.py"
SECURITY, SECRETS = "tests/test_security.py", "tests/test_secrets.py"
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
    "Gloo gets no moment": (
        STOPPING,
        "        time.sleep(GLOO_SETTLES)",
        "        pass",
        f"{EXACT} -m long -k leave_their",
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
        "tests/test_launcher.py -k without_the_launcher",
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
        "        return self.accelerator.reduce((~checked",
        "        return 0 * self.accelerator.reduce((~checked",
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
    "formats of the trainer": (GUARDS, 'formats=("JPEG", "PNG", "WEBP", "BMP")', "formats=None",
                               "tests/test_guards.py -k picture_that"),
    "state that does not fit": (TRUST, "for misfit in _misfits(run, checkpoint, saved):", "for misfit in ():",
                                f"{EXACT} -k stranger[larger"),
    "shapes of moments": (TRUST, "if not _is_floats(tensor, shapes[name]):", "if False:",
                          f"{EXACT} -k stranger[larger"),
    "random states of nonsense": (TRUST, '_try_random_state(rank["random"])', "pass",
                                  f"{EXACT} -k stranger[NumPy"),
    "attributes of a schedule": (TRUST, "if strange := sorted(", "if strange := [] and sorted(",
                                 f"{EXACT} -k stranger[attribute"),
    "another base": (TRUST, "    bases.refuse_other(", "    print(", f"{EXACT} -k same_place[tokenizer"),
    "data that is not known": (STATE, "    if free is None:", "    if False:", f"{FOLDERS} -k one_side_lacks"),
    "no step taken": (TRAINER, "    run.skipped.check_end(", "    print(", "tests/test_guards.py -k took_no_step"),
    "scaler without a scale": (GUARDS, "if self.by_scaler >= SCALER_SKIPS:", "if False:",
                               "tests/test_guards.py -k finds_no_scale"),
    "steps that a scaler leaves out": (TRAINER, "left_out = guards.scale_of(self.accelerator.scaler) < scale",
                                       "left_out = self.accelerator.optimizer_step_was_skipped",
                                       "tests/test_guards.py -k is_borne"),
    "damaged configuration": (GUARDS, 'elif path.suffix == ".json":', "elif False:",
                              "tests/test_guards.py -k damaged_configuration"),
    "missing weights": (GUARDS, 'if not any(part.glob("*.safetensors")):', "if False:",
                        "tests/test_guards.py -k part_without_weights"),
    "damaged file of the Hub": (TRAINER, "    guards.check_cached_base(", "    print(",
                                "tests/test_guards.py -k cache_of_the_hub"),
    "tokens in records": ("deepfashion_training/upstream/driven_run.py", "if getattr(self.settings, secret, None):",
                          "if False:", f"{SECRETS} -k a_script_is_given"),
    "tokens of mistyped flags": ("deepfashion_training/train_deepfashion_lora.py",
                                 'name = unknown[0].split("=")[0]', "name = unknown[0]",
                                 f"{SECRETS} -k mistyped"),
    "pictures outside of a dataset": ("deepfashion_training/data/picture_cells.py",
                                      "if not any(path.is_relative_to(root) for root in roots):", "if False:",
                                      f"{SECURITY} -k outside_of_the_dataset"),
    "pictures outside of a VITON-HD folder": (TRAINER,
                                              "if not path.resolve().is_relative_to(self.root.resolve()):",
                                              "if False:",
                                              "tests/test_train_flux_inpaint_data.py -k that_leaves"),
    "formulas in tables": ("deepfashion_training/evaluation/results.py",
                           """return f"'{value}" if isinstance""", """return f"'{value}" if False and isinstance""",
                           f"{SECURITY} -k formula"),
    "markup in captions": ("deepfashion_training/reports/page.py", "autoescape=True,", "autoescape=False,",
                           f"{SECURITY} -k hostile_rows"),
    "too many bad rows": ("deepfashion_training/deepfashion_dataset.py",
                          "if len(rows) > self.options.max_bad_rows * len(self):", "if False:",
                          "tests/test_deepfashion_dataset.py -k too_many_bad_rows"),
    "formats of pictures": (PICTURES, "io.BytesIO(data), formats=FORMATS)", "io.BytesIO(data))",
                            "tests/test_malformed_inputs.py -k in_the_ledger"),
    "decompression bombs": (PICTURES, "if limit is not None and picture.width * picture.height > limit:",
                            "if False:", f"{SECURITY} -k bomb_in_a_dataset[small"),
    "trials of auto are sent": (TRAINER, 'with getattr(self.transformer, "no_sync", contextlib.nullcontext)():',
                                "with contextlib.nullcontext():", "tests/test_memory_trials.py -m long"),
    "trials of auto leave gradients": (TRAINER, "            finally:\n                self.optimizer.zero_grad()\n",
                                       "            finally:\n                pass\n", "tests/test_memory_trials.py"),
    "ranks of a split base stop apart": (
        TRAINER, "self.stopping.agreed(self.accelerator)[0] if split else self.stopping.asked",
        "self.stopping.asked", "tests/test_sharding.py -m long -k draw_together",
    ),
    "split before DDP": (TRAINER, "            sharding.place_trained(self.parameters, accelerator.device)\n",
                         "            sharding.shard_frozen(transformer, accelerator)\n",
                         "tests/test_sharding.py -k several_gpus"),
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
        done = subprocess.run(
            [*command, *chosen.split(), *select], cwd=copy, env=environment, capture_output=True, text=True
        )
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

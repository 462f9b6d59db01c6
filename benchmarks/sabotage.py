"""Does the test of learning notice when something that learning depends on is broken? Exit 1 when it does not.

    python benchmarks/sabotage.py [--broken_only] [NAME ...]

Clones the last commit of the repository and runs ``tests/test_learning.py`` there, which has to pass; then breaks one
thing at a time, upon which an assertion about what was learned has to fail. Takes as long as that test for each;
``--broken_only`` leaves out the first, for what is known to pass. Where the run itself refuses what was broken, before
anything is judged, its words have to be those of ``REFUSED``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEST = "tests/test_learning.py"
TRAINER, DATASET = "train_flux_inpaint.py", "deepfashion_training/deepfashion_dataset.py"
#: What is broken: the file, what stands there, and what stands there instead.
SABOTAGES = {
    "mask packing": (
        TRAINER,
        "pack_latents(mask_blocks)]",
        "pack_latents(mask_blocks.transpose(2, 3).reshape(mask_blocks.shape))]",
    ),
    "halves swapped": (
        DATASET,
        "        return {\n            **tensors,",
        '        tensors |= {one: tensors[one].roll(self.width, 2) for one in ("image", "im_mask", "inpaint_mask")}\n'
        "        return {\n            **tensors,",
    ),
    "no conditioning": (
        TRAINER,
        "torch.cat([pack_latents(noisy), batch.conditioning], dim=2)",
        "torch.cat([pack_latents(noisy), 0 * batch.conditioning], dim=2)",
    ),
    "LoRA dropped on save": (
        TRAINER,
        'tensor.to("cpu").contiguous() for name, tensor in weights.items()}',
        'tensor.to("cpu").contiguous() * ("lora_A" in name) for name, tensor in weights.items()}',
    ),
}

#: Sabotages that the run itself finds, and what it then says.
REFUSED = {"LoRA dropped on save": "B matrices are all zero after training"}


def learns(name: str | None) -> tuple[bool, bool, str]:
    """Whether the test of learning passes with the sabotage ``name`` or none, whether that is noticed, its end."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(copy)], check=True)
        if name is not None:
            file, there, instead = SABOTAGES[name]
            text = (copy / file).read_text("utf-8")
            if text.count(there) != 1:
                raise SystemExit(f"{file} has {text.count(there)} places like {there!r}: bring SABOTAGES up to date")
            (copy / file).write_text(text.replace(there, instead), "utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", TEST]
        environment = os.environ | {"PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if re.match(r"(FAILED|ERROR|=*\s*\d+ (failed|passed))", line)]
    end = "\n".join(f"    {line}" for line in lines or done.stdout.splitlines()[-5:])
    judged = any(re.match(r"FAILED .*::test_the_(lora|base)", line) for line in lines)
    words = REFUSED.get(name or "")
    refused = words is not None and words in done.stdout
    if refused:
        end = f"    the run itself: ... {words} ...\n{end}"
    return done.returncode == 0, judged or refused, end


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to break: {', '.join(SABOTAGES)} (all)")
    parser.add_argument("--broken_only", action="store_true", help="do not run the test as it is first")
    args = parser.parse_args()
    names = args.names or list(SABOTAGES)
    if unknown := set(names) - set(SABOTAGES):
        parser.error(f"no sabotage is called {sorted(unknown)[0]!r}: choose from {', '.join(SABOTAGES)}")
    if not args.broken_only:
        passes, _, lines = learns(None)
        print(f"as it is: {'passes' if passes else 'FAILS, so nothing can be said'}\n{lines}", flush=True)
        if not passes:
            return 1
    missed = 0
    for name in names:
        _, noticed, lines = learns(name)
        missed += not noticed
        print(f"{name}: {'noticed' if noticed else 'NOT NOTICED'}\n{lines}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())

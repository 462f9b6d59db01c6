"""``--gradient_checkpointing auto``: what is tried before the first step leaves nothing behind and sends nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import train_flux_inpaint as tfi

FLAGS = (
    "--max_train_steps 2 --learning_rate 1e-2 --checkpointing_steps 0 --report_to none --logging_steps 1 "
    "--validation_steps 0 --train_batch_size 2"
).split()
#: Trains with trials as on a GPU whose memory is too small: rank 0 tries once, rank 1 twice, and on each the last trial
#: ends in its backward pass, where half of the gradients are there.
SCRIPT = """
import sys
import torch
import train_flux_inpaint as tfi
from training_run import speed

def trials(transformer, step, spare, accelerator):
    def full(_):
        raise torch.OutOfMemoryError
    for _ in range(accelerator.process_index):
        step()
    hook = transformer.transformer_blocks[1].attn.to_q.lora_A.default.weight.register_post_accumulate_grad_hook(full)
    try:
        step()
    except torch.OutOfMemoryError:
        print("no memory")
    hook.remove()
    return 0

speed.choose_recomputed = trials
tfi.main(tfi.parse_args(sys.argv[1:]))
"""


@pytest.mark.long
@pytest.mark.parametrize("ranks", [1, 2])
def test_trials_that_find_no_memory_change_no_bit_of_the_run(ranks, tiny_flags, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
    settings = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    settings["PYTHONPATH"] = str(Path(tfi.__file__).parent)

    def trained(name: str, recompute: str) -> dict[str, torch.Tensor]:
        flags = tiny_flags(*FLAGS, "--gradient_checkpointing", recompute, "--output_dir", tmp_path / name)
        done = subprocess.run(
            [*launch, str(script), *map(str, flags)], env=settings, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("no memory") == (ranks if recompute == "auto" else 0)
        return load_file(tmp_path / name / tfi.LORA_FILE)

    tried, plain = trained("auto", "auto"), trained("none", "none")
    assert tried.keys() == plain.keys() and all(torch.equal(tried[name], plain[name]) for name in plain)

"""What a training run needs around the loop of ``train_flux_inpaint.py``.

Files: ``atomic`` writes, ``checkpoints`` and their ``state``, ``output_dir`` and its ``lock``, the ``record`` in
run.json, ``latents`` cached on disk, the ``lora`` file. Memory and speed: ``speed`` (activation checkpointing, FSDP2),
``blocks`` in mixed precision, ``quantization``, ``optimizers``, ``transfer`` of batches, ``memory`` and ``flops`` of a
step. Order and input: ``flags``, ``row_order``, ``colour``, ``hub`` and ``bases``. ``guards`` names what is missing,
``cores`` counts processor cores, ``stopping`` ends processes, ``sheets`` draws validation pictures.
Nothing here knows try-on data or imports ``deepfashion_training``.
"""

import os

from training_run.cores import allowed_cores, usable_cores

# Read when torch is loaded, so whatever uses a GPU imports this package first.
#
# Segments that grow leave no gaps between them: a training step asks for pieces of many sizes, and without it several
# GiB can be free and of no use. Torch before 2.9 reads the older name alone, later versions both, the older one first.
if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"} & os.environ.keys():
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
# Threads that spin while they wait make a CPU step 15 times slower on a shared core.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Torch starts a thread for each core, as it knows no CPU quota.
if (_cores := usable_cores()) < allowed_cores():
    os.environ.setdefault("OMP_NUM_THREADS", str(_cores))

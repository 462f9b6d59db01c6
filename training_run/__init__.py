"""What a training run needs around the loop of ``train_flux_inpaint.py``.

Files: ``atomic`` writes, ``checkpoints`` and their ``state``, ``output_dir``, the ``record`` in run.json, ``latents``
cached on disk, the ``lora`` file. Memory and speed: ``speed`` (activation checkpointing, FSDP2), ``quantization``,
``flops``. Order and input: ``flags``, ``row_order``, ``colour``, ``hub`` and ``bases``. ``guards`` names what is
missing, ``stopping`` handles signals, ``sheets`` draws validation pictures.
Nothing here knows try-on data or imports ``deepfashion_training``.
"""

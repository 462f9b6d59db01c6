"""What keeps a training run from losing anything: ``train_flux_inpaint.py`` is built on it, and so is the wrapper.

``checkpoints`` folders that are complete or absent, ``state`` what they hold, ``output_dir`` where they lie, ``record``
what ``run.json`` says, ``sheets`` validation pictures, ``stopping`` signals, ``guards`` what must be true of a step.
Nothing here knows try-on data, and nothing imports ``deepfashion_training``.
"""

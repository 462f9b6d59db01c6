"""Image features of DINOv2: what a picture shows, as a vector in which distances between pictures mean something."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deepfashion_training.images.pictures import to_rgb
from deepfashion_training.models.hub_files import CONFIG, PREPROCESSOR, model_folder, read_json, revision_of

if TYPE_CHECKING:
    import torch

#: DINOv2 ViT-B/14 (Oquab et al. 2023) by its authors, 346 MB. The paper of FD-DINOv2 has facebook/dinov2-large.
DEFAULT_DINO = "facebook/dinov2-base"

_FLAG = "--dino_model"
_KINDS = ("dinov2", "dinov2_with_registers")

#: What a model without ``preprocessor_config.json`` is given: 16 x 16 patches of 14 pixels, ImageNet's mean and std.
_SIZE = (224, 224)
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: Pictures of one forward pass on a GPU. A CPU gains nothing from several.
_GPU_BATCH = 32


class Dino:
    """A DINOv2 model, loaded through transformers from safetensors.

    ``model`` is a local folder or a Hub id, ``device`` a torch device (a CUDA GPU where there is one, else the CPU).
    Weights and the sums along its residual path are fp32; on CUDA matrices are multiplied in bf16 (fp16 on older
    GPUs). ``revision`` is for the record, see ``hub_files.revision_of``. Raises the ``ValueError`` of ``find_dino``,
    and one for a file that lacks weights.
    """

    def __init__(self, model: str = DEFAULT_DINO, device: str | None = None) -> None:
        import torch
        from transformers import AutoModel

        folder = find_dino(model)
        self.revision = revision_of(model, folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._prepare = _DinoPreprocessing(folder, model)
        network, loaded = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
        missing = sorted(loaded["missing_keys"])
        if missing:  # transformers would draw them at random
            raise ValueError(f"{_FLAG} {model}: lacks {len(missing)} weights such as {missing[0]}: fetch it again")
        self._network = network.to(self.device).eval().requires_grad_(False)
        self.width = int(network.config.hidden_size)

    def embed(self, pictures: Sequence[Image.Image]) -> torch.Tensor:
        """Features float32 ``[n, width]`` of ``n`` pictures, on the CPU: ``width`` is 768 for ViT-B, 1024 for ViT-L.

        The feature is the class token after the last layer norm, that of FD-DINOv2 (Stein et al. 2023, "Exposing flaws
        of generative model evaluation metrics and their unfair treatment of diffusion models"). As in that paper's
        code a picture is not cropped but squeezed whole to 224 x 224 by Pillow's bicubic filter: feet and heads count,
        and pictures to be compared should have one aspect. The paper's numbers are of ViT-L/14, and numbers are
        comparable only with those of the same model.

        Pictures may differ in size and mode; EXIF is not applied, see ``pictures.turn``. The features of a picture do
        not depend on the others: on a CPU it goes through the network alone, on a GPU in a batch that always has the
        same size.
        """
        import torch

        size = _GPU_BATCH if self.device.type == "cuda" else 1
        found = [self._embed_batch(pictures[start : start + size], size) for start in range(0, len(pictures), size)]
        return torch.cat([torch.empty(0, self.width), *found])

    def _embed_batch(self, pictures: Sequence[Image.Image], size: int) -> torch.Tensor:
        import torch

        filled = np.zeros((size, 3, *self._prepare.size[::-1]), np.float32)
        filled[: len(pictures)] = [self._prepare(picture) for picture in pictures]
        cuda = self.device.type == "cuda"
        half = torch.bfloat16 if not cuda or torch.cuda.is_bf16_supported() else torch.float16
        with torch.inference_mode(), torch.autocast(self.device.type, half, enabled=cuda):
            tokens = self._network(pixel_values=torch.from_numpy(filled).to(self.device)).last_hidden_state
        return tokens[: len(pictures), 0].float().cpu()


def find_dino(model: str = DEFAULT_DINO) -> Path:
    """Folder of a DINOv2 model's files, downloaded where it has to be, so that loading needs no network.

    ``model`` is a local folder or a Hub id. Raises ``ValueError``, one line with the fix, when it cannot be had or is
    another kind of model, and when its preprocessing is not understood.
    """
    folder = model_folder(_FLAG, model, DEFAULT_DINO)
    kind = read_json(_FLAG, model, folder, CONFIG).get("model_type")
    if kind not in _KINDS:
        raise ValueError(f"{_FLAG} {model} is a {kind} model: pass a DINOv2 model such as {DEFAULT_DINO}")
    _DinoPreprocessing(folder, model)
    return folder


class _DinoPreprocessing:
    """Whole pictures squeezed to the size that the model's own crop has, normalised as its file says."""

    def __init__(self, folder: Path, model: str) -> None:
        has_file = (folder / PREPROCESSOR).is_file()
        config = read_json(_FLAG, model, folder, PREPROCESSOR) if has_file else {}
        try:
            self.size = _pair(config.get("crop_size")) or _pair(config.get("size")) or _SIZE
            self.mean = np.asarray(config.get("image_mean", _MEAN), np.float32).reshape(3)
            self.std = np.asarray(config.get("image_std", _STD), np.float32).reshape(3)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{_FLAG} {model}: {PREPROCESSOR} is not understood: {error}") from error

    def __call__(self, picture: Image.Image) -> np.ndarray:
        """A picture of any size and mode as the network reads it: float32 ``[3, height, width]``."""
        values = np.asarray(to_rgb(picture).resize(self.size, Image.Resampling.BICUBIC), np.float32) / 255
        return ((values - self.mean) / self.std).transpose(2, 0, 1)


def _pair(size: Any) -> tuple[int, int] | None:
    """(width, height) of a size in a preprocessing file; None for one that names the shortest edge only, and none."""
    if isinstance(size, dict):
        return (int(size["width"]), int(size["height"])) if {"width", "height"} <= size.keys() else None
    return (int(size), int(size)) if size else None

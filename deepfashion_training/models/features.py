"""Image features of DINOv2: what a picture shows, as a vector in which distances between pictures mean something."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from deepfashion_training.images.pictures import to_rgb
from deepfashion_training.models.hub_files import CONFIG, model_folder, read_json, revision_of

if TYPE_CHECKING:
    import torch

#: DINOv2 ViT-B/14 (Oquab et al. 2023) by its authors, 346 MB. The paper of FD-DINOv2 has facebook/dinov2-large.
DEFAULT_DINO = "facebook/dinov2-base"

_FLAG = "--dino_model"
_KINDS = ("dinov2", "dinov2_with_registers")

#: What all DINOv2 models are given: 16 x 16 patches of 14 pixels, normalised by ImageNet's mean and deviation.
_SIZE = (224, 224)
_MEAN, _STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)

#: Pictures of one forward pass on a GPU. A CPU gains nothing from several.
_GPU_BATCH = 32


class Dino:
    """A DINOv2 model, loaded through transformers from safetensors.

    ``model`` is a local folder or a Hub id, ``device`` a torch device (a CUDA GPU where there is one, else the CPU).
    Weights are fp32; on CUDA matrices are multiplied in bf16 (fp16 on older GPUs). ``revision`` is that of
    ``hub_files.revision_of``. Raises ``ValueError`` as ``find_dino`` does, and for a file that lacks weights.
    """

    def __init__(self, model: str = DEFAULT_DINO, device: str | None = None) -> None:
        import torch
        from transformers import AutoModel

        folder = find_dino(model)
        self.revision = revision_of(model, folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
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
        code a picture is squeezed whole to 224 x 224 by Pillow's bicubic filter: pictures to be compared should have
        one aspect. Numbers are comparable only with those of the same model; the paper's are of ViT-L/14.

        Pictures may differ in size and mode; EXIF is not applied. The features of a picture do not depend on the
        others: every forward pass on one device has the same batch size.
        """
        import torch

        size = _GPU_BATCH if self.device.type == "cuda" else 1
        found = [self._embed_batch(pictures[start : start + size], size) for start in range(0, len(pictures), size)]
        return torch.cat([torch.empty(0, self.width), *found])

    def _embed_batch(self, pictures: Sequence[Image.Image], size: int) -> torch.Tensor:
        import torch

        filled = np.zeros((size, 3, *_SIZE), np.float32)
        filled[: len(pictures)] = [_pixels(picture) for picture in pictures]
        cuda = self.device.type == "cuda"
        half = torch.bfloat16 if not cuda or torch.cuda.is_bf16_supported() else torch.float16
        with torch.inference_mode(), torch.autocast(self.device.type, half, enabled=cuda):
            tokens = self._network(pixel_values=torch.from_numpy(filled).to(self.device)).last_hidden_state
        return tokens[: len(pictures), 0].float().cpu()


def find_dino(model: str = DEFAULT_DINO) -> Path:
    """Folder of a DINOv2 model's files, downloaded where it has to be. ``model`` is a local folder or a Hub id.

    Raises ``ValueError``, one line with the fix, when it cannot be had or is another kind of model.
    """
    folder = model_folder(_FLAG, model, DEFAULT_DINO)
    kind = read_json(_FLAG, model, folder / CONFIG).get("model_type")
    if kind not in _KINDS:
        raise ValueError(f"{_FLAG} {model} is a {kind} model: pass a DINOv2 model such as {DEFAULT_DINO}")
    return folder


def _pixels(picture: Image.Image) -> np.ndarray:
    """The network's input: float32 ``[3, 224, 224]``."""
    values = np.asarray(to_rgb(picture).resize(_SIZE, Image.Resampling.BICUBIC), np.float32) / 255
    return ((values - _MEAN) / _STD).transpose(2, 0, 1)

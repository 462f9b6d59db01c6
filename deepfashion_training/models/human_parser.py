"""Human parsing: which pixel of a photo is hair, skirt, left arm... By a SegFormer that knows the 18 ATR labels."""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from deepfashion_training.images.parts import LABELS as ATR_LABELS
from deepfashion_training.images.pictures import to_rgb
from deepfashion_training.models.hub_files import CONFIG, PREPROCESSOR, model_folder, read_json, revision_of

#: SegFormer-B2 fine-tuned on ATR by its author: the usual open human parser, 110 MB.
DEFAULT_PARSER = "mattmdjaga/segformer_b2_clothes"

_FLAG = "--parser"

#: Photos of one forward pass. 8 at 512x512 take about 2 GiB with SegFormer-B2 in half precision.
_BATCH = 8


class PhotoParser(abc.ABC):
    """Photos in, the ATR label of every pixel out; a subclass knows where the network between them is.

    ``model`` and ``revision`` are those of ``HumanParser``.
    """

    def __init__(self, model: str, revision: str | None = None) -> None:
        self.folder = model_folder(_FLAG, model, DEFAULT_PARSER, revision)
        self._prepare = _Preprocessing(self.folder, model)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that every photo is brought to."""
        width, height = self._prepare.size
        return height, width

    @abc.abstractmethod
    def label(self, pixels: np.ndarray, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
        """Labels uint8 [h, w], an array for each of ``sizes``, of photos prepared as float32 [n, 3, height, width]."""

    def parse(self, photos: Sequence[Image.Image]) -> list[np.ndarray]:
        """The ATR label of every pixel: one uint8 array [h, w] per photo, of that photo's size; EXIF is not applied."""
        maps: list[np.ndarray] = []
        for start in range(0, len(photos), _BATCH):
            batch = photos[start : start + _BATCH]
            pixels = np.stack([self._prepare(photo) for photo in batch])
            maps += self.label(pixels, [(photo.height, photo.width) for photo in batch])
        return maps


class HumanParser(PhotoParser):
    """A semantic segmentation model with the 18 ATR labels, loaded through transformers from safetensors.

    ``model`` is a local folder or a Hub id, ``device`` a torch device (a CUDA GPU where there is one, else the CPU).
    It computes in bf16 (fp16 on older GPUs) on CUDA and in fp32 elsewhere. ``revision`` is that of
    ``hub_files.revision_of``. Raises ``ValueError`` as ``check_human_parser`` does.
    """

    def __init__(self, model: str, revision: str | None = None, device: str | None = None) -> None:
        import torch
        from transformers import AutoModelForSemanticSegmentation

        super().__init__(model, revision)
        self.revision = revision_of(model, self.folder)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = torch.float32
        if self.device.type == "cuda":
            self.dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        self._numbers = _atr_numbers(self.folder, model)
        network = AutoModelForSemanticSegmentation.from_pretrained(
            self.folder, use_safetensors=True, trust_remote_code=False, local_files_only=True
        )
        self._network = network.to(self.device, self.dtype).eval().requires_grad_(False)

    def label(self, pixels: np.ndarray, sizes: list[tuple[int, int]]) -> list[np.ndarray]:
        """As of ``PhotoParser``; on a GPU it may depend a little on which photos are labelled together."""
        import torch

        maps = []
        values = torch.from_numpy(pixels).to(self.device, self.dtype)
        with torch.inference_mode():
            logits = self._network(pixel_values=values).logits.float()  # [n, 18, h/4, w/4]
            for one, size in zip(logits, sizes, strict=True):
                # One label after the other: all 18 at once are 3.6 GB of a photo of 50 megapixels.
                label, highest = torch.zeros(size, dtype=torch.uint8, device=self.device), None
                for number, channel in enumerate(one):
                    full = torch.nn.functional.interpolate(channel[None, None], size, mode="bilinear")[0, 0]
                    if highest is None:
                        highest = full
                        continue
                    label[full > highest] = number
                    highest = torch.maximum(highest, full)
                maps.append(self._numbers[label.cpu().numpy()])
        return maps


@functools.lru_cache(maxsize=2)
def load_human_parser(model: str, revision: str | None = None) -> HumanParser:
    """The human parser, loaded once in each process."""
    return HumanParser(model, revision)


def parser_revision(model: str, revision: str | None = None) -> str | None:
    """``HumanParser.revision`` of a model that is not loaded for it."""
    return revision_of(model, model_folder(_FLAG, model, DEFAULT_PARSER, revision))


def parser_devices() -> list[str]:
    """The CUDA GPUs that torch can use, as names of torch devices."""
    import torch

    return [f"cuda:{number}" for number in range(torch.cuda.device_count())]


def default_human_parser() -> str | None:
    """``DEFAULT_PARSER`` where torch can use a CUDA GPU, else None: on a CPU it takes seconds a row."""
    import torch

    return DEFAULT_PARSER if torch.cuda.is_available() else None


def check_human_parser(model: str, revision: str | None = None) -> None:
    """Raise ``ValueError``, one line with the fix, when ``model`` cannot be had or does not know the ATR labels.

    ``model`` is a local folder or a Hub id. A Hub model is downloaded, so that loading it afterwards needs no network.
    """
    folder = model_folder(_FLAG, model, DEFAULT_PARSER, revision)
    _atr_numbers(folder, model)
    _Preprocessing(folder, model)


class _Preprocessing:
    """What the image processor of transformers does by ``preprocessor_config.json``, without its torchvision."""

    def __init__(self, folder: Path, model: str) -> None:
        config = read_json(_FLAG, model, folder / PREPROCESSOR)
        try:
            if not all(config.get(f"do_{step}", True) for step in ("resize", "rescale", "normalize")):
                raise ValueError("a step is switched off")
            self.size = int(config["size"]["width"]), int(config["size"]["height"])
            self.filter = Image.Resampling(config.get("resample", Image.Resampling.BILINEAR))
            self.scale = np.float32(config.get("rescale_factor", 1 / 255))
            self.mean, self.std = (np.asarray(config[name], np.float32) for name in ("image_mean", "image_std"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{_FLAG} {model}: {PREPROCESSOR} is not that of a SegFormer: {error!r}") from error

    def __call__(self, photo: Image.Image) -> np.ndarray:
        """The network's input: float32 [3, height, width]."""
        values = np.asarray(to_rgb(photo).resize(self.size, self.filter), np.float32) * self.scale
        return ((values - self.mean) / self.std).transpose(2, 0, 1)


def _atr_numbers(folder: Path, model: str) -> np.ndarray:
    """The ATR number of each number that the model outputs, uint8 [18]; labels are matched by name."""
    labels = read_json(_FLAG, model, folder / CONFIG).get("id2label") or {}
    named = {int(number): _plain(str(name)) for number, name in labels.items()}
    wanted = [_plain(name) for name in ATR_LABELS]
    if sorted(named) != list(range(len(wanted))) or sorted(named.values()) != sorted(wanted):
        has = ", ".join(map(str, labels.values())) or "none"
        raise ValueError(f"{_FLAG} {model}: needs the 18 ATR labels ({', '.join(ATR_LABELS)}); its labels are {has}")
    return np.array([wanted.index(named[number]) for number in range(len(wanted))], np.uint8)


def _plain(label: str) -> str:
    """A label without its case, hyphens, underscores and spaces."""
    return "".join(letter for letter in label.casefold() if letter.isalnum())

"""VITON-HD pairs as the re-created training script reads them: garment on the left, person on the right."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms


class VitonHDTestDataset(Dataset):
    def __init__(self, dataroot_path, phase, order="paired", size=(512, 384), data_list=None):
        self.height, self.width = size
        self.folder = Path(dataroot_path) / phase
        pairs = pd.read_csv(Path(dataroot_path) / (data_list or f"{phase}_pairs.txt"), sep=" ", header=None)
        self.people = pairs[0].tolist()
        self.garments = self.people if order == "paired" else pairs[1].tolist()
        self.to_signed = transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5], [0.5])])

    def __len__(self):
        return len(self.people)

    def _picture(self, kind, name):
        with Image.open(self.folder / kind / name) as picture:
            return self.to_signed(picture.convert("RGB").resize((self.width, self.height)))

    def __getitem__(self, index):
        person, garment = self.people[index], self.garments[index]
        cloth, photo = self._picture("cloth", garment), self._picture("image", person)
        mask = cv2.imread(str(self.folder / "agnostic-mask" / f"{Path(person).stem}_mask.png"), cv2.IMREAD_GRAYSCALE)
        mask = cv2.resize(mask, (self.width, self.height), interpolation=cv2.INTER_NEAREST)
        mask = torch.from_numpy((mask > 127).astype(np.float32))[None]
        return {
            "im_name": person,
            "c_name": garment,
            "cloth_pure": cloth,
            "image": torch.cat([cloth, photo], dim=2),
            "im_mask": torch.cat([cloth, photo * (1 - mask)], dim=2),
            "inpaint_mask": torch.cat([torch.zeros_like(mask), mask], dim=2),
        }

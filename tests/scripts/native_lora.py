"""A training script that trains a LoRA by itself: the least that can be driven, with a model of one layer."""

import argparse
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset


class VitonHDTestDataset(Dataset):
    """Four grey pairs that need no files."""

    def __init__(self, dataroot_path, phase, order="paired", size=(512, 384), data_list=None):
        self.height, self.width = size

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {"image": torch.full((3, self.height, 2 * self.width), index / 4)}


def parse_args(words=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--dataroot")
    parser.add_argument("--learning_rate", type=float, default=1e-2)
    parser.add_argument("--max_train_steps", type=int, default=3)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=96)
    return parser.parse_args(words)


def main(args):
    dataset = VitonHDTestDataset(
        dataroot_path=args.dataroot, phase="train", order="paired", size=(args.height, args.width), data_list=None
    )
    model = torch.nn.Sequential()
    model.add_module("to_q", torch.nn.Linear(3, 3))
    model = inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, target_modules=["to_q"]), model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=args.learning_rate)
    step = 0
    while step < args.max_train_steps:
        for batch in DataLoader(dataset, shuffle=False, batch_size=2):
            colours = batch["image"].mean(dim=(2, 3))
            loss = ((model(colours) - colours) ** 2).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step >= args.max_train_steps:
                break
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    weights = {f"transformer.{name}": tensor for name, tensor in get_peft_model_state_dict(model).items()}
    save_file(weights, Path(args.output_dir) / "pytorch_lora_weights.safetensors")


if __name__ == "__main__":
    main(parse_args())

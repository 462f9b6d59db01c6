"""Command line of the re-created training script. The module's name is misspelt as in users' copies."""

import argparse

#: Flags that are None unless given, by type.
UNSET = {
    str: "revision variant cache_dir dataset_name instance_data_dir instance_prompt "
    "dataroot resume_from_checkpoint hub_token",
    int: "seed max_train_steps checkpoints_total_limit",
}
SWITCHES = "train_base_model train_lora gradient_checkpointing allow_tf32 scale_lr use_8bit_adam push_to_hub"
#: Flags with a default, whose type is the default's. ``bool`` takes every word but the empty one for true.
DEFAULTS = {
    "pretrained_inpaint_model_name_or_path": "xiaozaa/flux1-fill-dev-diffusers",
    "train_data_list": "train_pairs.txt",
    "train_verification_list": "train_pairs.txt",
    "validation_data_list": "test_pairs.txt",
    "output_dir": "flux-fill-tryon",
    "logging_dir": "logs",
    "report_to": "tensorboard",
    "lr_scheduler": "constant",
    "optimizer": "AdamW",
    "prodigy_decouple": True,
    "width": 512,
    "height": 512,
    "max_sequence_length": 77,
    "dataloader_num_workers": 0,
    "lora_rank": 8,
    "train_batch_size": 4,
    "num_train_epochs": 1,
    "gradient_accumulation_steps": 1,
    "local_rank": -1,
    "checkpointing_steps": 500,
    "validation_steps": 1000,
    "num_inference_steps": 50,
    "lr_warmup_steps": 500,
    "lr_num_cycles": 1,
    "lr_power": 1.0,
    "learning_rate": 1e-4,
    "max_grad_norm": 1.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_weight_decay": 1e-4,
    "adam_epsilon": 1e-8,
    "guidance_scale": 3.5,
    "dropout_prob": 0.0,
    "logit_mean": 0.0,
    "logit_std": 1.0,
    "mode_scale": 1.29,
}


def parse_args(words=None):
    parser = argparse.ArgumentParser(description="Train a FLUX-Fill transformer for try-on.")
    parser.add_argument("--pretrained_model_name_or_path", required=True)
    parser.add_argument("--mixed_precision", choices=["no", "fp16", "bf16"])
    schemes = ["sigma_sqrt", "logit_normal", "mode", "cosmap", "none"]
    parser.add_argument("--weighting_scheme", choices=schemes, default="none")
    for kind, names in UNSET.items():
        for name in names.split():
            parser.add_argument(f"--{name}", type=kind)
    for name in SWITCHES.split():
        parser.add_argument(f"--{name}", action="store_true")
    for name, default in DEFAULTS.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    given = parser.parse_args(words)
    if (given.dataset_name is None) == (given.instance_data_dir is None):
        raise ValueError("Give exactly one of --dataset_name and --instance_data_dir")
    return given

"""Which layers of a FLUX transformer get a LoRA."""

from __future__ import annotations

import re

import torch

#: Linear layers inside a double or single block, by the ending of their name.
ATTENTION = (
    "attn.to_q attn.to_k attn.to_v attn.to_out.0 attn.add_q_proj attn.add_k_proj attn.add_v_proj attn.to_add_out"
)
FEED_FORWARD = "ff.net.0.proj ff.net.2 ff_context.net.0.proj ff_context.net.2 proj_mlp proj_out"
LORA_TARGETS = {"attention": ATTENTION.split(), "all": f"{ATTENTION} {FEED_FORWARD}".split()}


def lora_pattern(target_modules: str, transformer: torch.nn.Module) -> str:
    """Regular expression for layers inside blocks that ``--lora_target_modules`` names; ``ValueError`` for none."""
    wanted = LORA_TARGETS.get(target_modules) or [name.strip() for name in target_modules.split(",")]
    inside = re.compile(r"(?:single_)?transformer_blocks\.\d+\.(.+)")
    layers = [name for name, module in transformer.named_modules() if "Linear" in type(module).__name__]
    endings = {match[1] for name in layers if (match := inside.fullmatch(name))}
    for name in wanted if target_modules not in LORA_TARGETS else []:
        if not name or not any(f".{ending}".endswith(f".{name}") for ending in endings):
            known = ", ".join(["all", "attention", *sorted(endings)])
            raise ValueError(f"--lora_target_modules: no layer named {name!r}; choose from {known}")
    return rf"(?:single_)?transformer_blocks\.\d+\.(?:.+\.)?(?:{'|'.join(map(re.escape, wanted))})"

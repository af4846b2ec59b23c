"""Loads a U-Net that was pruned by laptop-diff into diffusers.

Needs torch, safetensors and diffusers, and nothing else: keep this file beside the weights and copy it where you like.

    import sys, torch
    from diffusers import StableDiffusionXLPipeline
    sys.path.append("pruned/unet")
    from laptop_diff_unet import load_unet

    unet = load_unet("pruned/unet", torch_dtype=torch.float16)
    pipe = StableDiffusionXLPipeline.from_pretrained("pruned", unet=unet, torch_dtype=torch.float16)

The result is an ordinary UNet2DConditionModel whose removed branches are gone: they hold no parameters and cost no time.
"""

import json
import pathlib

import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file

WEIGHTS = "diffusion_pytorch_model.safetensors"
VERSION = "1"


class Nothing(torch.nn.Module):
    """A removed branch: what it adds to its residual is 0."""

    def forward(self, *args, **kwargs):
        return 0.0


class Shortcut(torch.nn.Module):
    """A ResNet without its main path."""

    def __init__(self, conv_shortcut):
        super().__init__()
        self.conv_shortcut = conv_shortcut

    def forward(self, input_tensor, *args, **kwargs):
        return input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)


class Through(torch.nn.Module):
    """A Transformer2D without any branch."""

    def forward(self, hidden_states, *args, **kwargs):
        return (hidden_states,)


def drop(unet, removed):
    """Takes the branches with these names out of a UNet2DConditionModel."""
    left = set(removed)
    for name, module in list(unet.named_modules()):
        kind = type(module).__name__
        if kind == "ResnetBlock2D" and name in left:
            put(unet, name, Shortcut(module.conv_shortcut))
            left.discard(name)
        elif kind == "Transformer2DModel":
            branches = {f"{name}.transformer_blocks.{i}.{b}" for i in range(len(module.transformer_blocks)) for b in ("attn1", "attn2", "ff")}
            gone = branches & left
            left -= gone
            if branches and gone == branches:
                put(unet, name, Through())
                continue
            for branch in gone:
                block, _, what = branch.rpartition(".")
                block = unet.get_submodule(block)
                if what == "attn1":
                    block.attn1, block.norm1 = Nothing(), torch.nn.Identity()
                elif what == "attn2":
                    # diffusers skips a second attention that is None, its norm included.
                    block.attn2, block.norm2 = None, None
                else:
                    block.ff, block.norm3 = Nothing(), torch.nn.Identity()
    if left:
        raise ValueError(f"this architecture has no such layers: {sorted(left)}")


def put(unet, name, module):
    parent, _, child = name.rpartition(".")
    parent = unet.get_submodule(parent)
    if child.isdigit():
        parent[int(child)] = module
    else:
        setattr(parent, child, module)


def load_unet(folder, torch_dtype=None, device="cpu"):
    """A UNet2DConditionModel from a folder that `laptop-diff prune` wrote, in evaluation mode."""
    folder = pathlib.Path(folder)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("laptop_diff.version") != VERSION:
        raise ValueError(f"{folder / WEIGHTS}: laptop_diff.version is {metadata.get('laptop_diff.version')}, this file reads {VERSION}")
    # On the meta device nothing is allocated or initialised.
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(json.loads((folder / "config.json").read_text()))
        drop(unet, json.loads(metadata["laptop_diff.removed"]))
    state = load_file(folder / WEIGHTS, device=str(device))
    # Files may hold several types; a network computes in one, and not in 8 bits.
    stored = state["conv_in.weight"].dtype
    dtype = torch_dtype or (stored if stored.itemsize > 1 else torch.float16)
    state = {key: tensor.to(dtype) for key, tensor in state.items()}
    unet.load_state_dict(state, strict=True, assign=True)
    return unet.eval()

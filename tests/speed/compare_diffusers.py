"""One U-Net forward, this program against diffusers' eager mode: same libtorch, same weights, same shapes, in turns.

    python tests/speed/compare_diffusers.py target/debug/laptop-diff assets/tiny-sdxl/unet
    python tests/speed/compare_diffusers.py target/debug/laptop-diff sd15 --latent-size 32

Needs torch 2.11.0, diffusers and safetensors. `sd15` and `sdxl` stand for random weights in those shapes, written to a temporary
folder first (3.4 and 10 GB in f32). Each turn times a few calls of either, after one untimed call; the printed ratio is the median of
the turns' ratios, because the machine's speed drifts over minutes.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import tempfile
import time

import torch
from diffusers import UNet2DConditionModel

ROOT = pathlib.Path(__file__).resolve().parents[2]


def random_model(name, folder):
    config = json.loads((ROOT / "configs" / "unet" / f"{name}.json").read_text())
    torch.manual_seed(0)
    UNet2DConditionModel.from_config(config).save_pretrained(folder)
    return folder


def model_folder(name, folder):
    """`sd15` and `sdxl` with random weights, or a folder that is there."""
    return random_model(name, folder) if name in ("sd15", "sdxl") else pathlib.Path(name)


def random_inputs(config, batch, side, tokens=77):
    """What a U-Net is called with, under the names that `laptop-diff forward` takes; `bench` takes the published 77 tokens, too."""
    inputs = {"sample": torch.randn(batch, config["in_channels"], side, side), "timestep": torch.full((batch,), 500),
              "encoder_hidden_states": torch.randn(batch, tokens, config["cross_attention_dim"])}
    if config.get("addition_embed_type") == "text_time":
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        inputs |= {"text_embeds": torch.randn(batch, pooled), "time_ids": torch.ones(batch, 6)}
    return inputs


def call(unet, inputs):
    """A forward of diffusers' U-Net on its device, in its number type."""
    moved = {k: v.to(unet.device) if k == "timestep" else v.to(unet.device, unet.dtype) for k, v in inputs.items()}
    added = {k: moved[k] for k in ("text_embeds", "time_ids") if k in moved}
    return lambda: unet(moved["sample"], moved["timestep"], moved["encoder_hidden_states"], added_cond_kwargs=added or None)


def ours(args, model, folder):
    out = folder / "speed.json"
    call = [args.binary, "bench", "--model", model, "--batch", args.batch, "--latent-size", args.latent_size, "--rounds", args.calls,
            "--warmup", 1, "--device", args.device, "--out", out]
    subprocess.run([str(word) for word in call], check=True, capture_output=True)
    return json.loads(out.read_text())["latency"][0]["median_s"]


def theirs(args, unet):
    forward = call(unet, random_inputs(unet.config, args.batch, args.latent_size))
    times = []
    with torch.no_grad():
        for turn in range(args.calls + 1):
            start = time.perf_counter()
            forward()
            if args.device != "cpu":
                torch.cuda.synchronize()
            times += [time.perf_counter() - start] * (turn > 0)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary")
    parser.add_argument("model", help="a U-Net's folder in diffusers' layout, sd15 or sdxl")
    parser.add_argument("--latent-size", type=int)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        model = model_folder(args.model, tmp / "unet")
        unet = UNet2DConditionModel.from_pretrained(model, torch_dtype=torch.float32 if args.device == "cpu" else torch.bfloat16)
        unet = unet.to(args.device).eval()
        args.latent_size = args.latent_size or unet.config.sample_size
        rows = []
        for _ in range(args.turns):
            rows.append((ours(args, model, tmp), theirs(args, unet)))
    for name, column in (("laptop-diff", 0), ("diffusers", 1)):
        times = [row[column] for row in rows]
        print(f"{name:12} median {1e3 * statistics.median(times):9.2f} ms, {1e3 * min(times):9.2f} to {1e3 * max(times):9.2f}")
    ratios = sorted(a / b for a, b in rows)
    print(f"ratio        median {statistics.median(ratios):9.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}, torch {torch.__version__}, {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()

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


def ours(args, model, folder):
    out = folder / "speed.json"
    call = [args.binary, "speed", "--model", model, "--batch", args.batch, "--latent-size", args.latent_size, "--rounds", args.calls,
            "--warmup", 1, "--device", args.device, "--out", out]
    subprocess.run([str(word) for word in call], check=True, capture_output=True)
    return json.loads(out.read_text())["latency"][0]["median_s"]


def theirs(args, unet):
    config, n = unet.config, args.batch
    to = dict(device=args.device, dtype=unet.dtype)
    added = None
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": torch.randn(n, pooled, **to), "time_ids": torch.ones(n, 6, **to)}
    sample = torch.randn(n, config.in_channels, args.latent_size, args.latent_size, **to)
    text = torch.randn(n, args.tokens, config.cross_attention_dim, **to)
    times = []
    with torch.no_grad():
        for turn in range(args.calls + 1):
            start = time.perf_counter()
            unet(sample, torch.full((n,), 500, device=args.device), text, added_cond_kwargs=added)
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
        model = random_model(args.model, tmp / "unet") if args.model in ("sd15", "sdxl") else pathlib.Path(args.model)
        unet = UNet2DConditionModel.from_pretrained(model, torch_dtype=torch.float32 if args.device == "cpu" else torch.bfloat16)
        unet = unet.to(args.device).eval()
        args.latent_size = args.latent_size or unet.config.sample_size
        # `speed` takes the published 77 for a U-Net alone.
        args.tokens = 77
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

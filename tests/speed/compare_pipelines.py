"""A whole text-to-image call, this program against diffusers: same libtorch, same weights, same noise, in turns.

    cargo run -p diffusion --example random_model -- sd15 runs/random-sd15
    python tests/speed/compare_pipelines.py target/debug/laptop-diff assets/tiny-sdxl --steps 20
    python tests/speed/compare_pipelines.py target/debug/laptop-diff runs/random-sd15 --size 128 --steps 4 --turns 3 --calls 2

Needs torch 2.11.0, diffusers, transformers and pillow. Prompt to picture in memory; loading and PNG files are not timed. Each turn times
a few calls of either, after one untimed call; the printed ratio is the median of the turns' ratios, because the machine's speed drifts
over minutes. The pictures must be alike: else the two did not do the same work.
"""

import argparse
import pathlib
import re
import statistics
import subprocess
import tempfile
import time

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from PIL import Image

PROMPT = "a small red circle"


def ours(args, folder):
    call = [args.binary, "-v", "generate", "--model", args.model, "--prompt", PROMPT, "--num-inference-steps", args.steps, "--guidance-scale", args.cfg,
            "--size", args.size, "--sampler", "ddim", "--batch", 1, "--num-images-per-prompt", args.calls + 1, "--seed", 0,
            "--device", args.device, "--out", folder]
    done = subprocess.run([str(word) for word in call], check=True, capture_output=True, text=True)
    times = [float(t) for t in re.findall(r"1 images in ([0-9.]+) s", done.stderr)]
    assert len(times) == args.calls + 1, done.stderr
    return statistics.median(times[1:]), np.asarray(Image.open(folder / "00000.png"), dtype=float)


def theirs(args, pipe):
    times, first = [], None
    for call in range(args.calls + 1):
        noise = torch.Generator().manual_seed(call)
        start = time.perf_counter()
        picture = pipe(PROMPT, num_inference_steps=args.steps, guidance_scale=args.cfg, height=args.size, width=args.size, generator=noise).images[0]
        times.append(time.perf_counter() - start)
        first = np.asarray(picture, dtype=float) if first is None else first
    return statistics.median(times[1:]), first


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary")
    parser.add_argument("model", help="a model directory in diffusers' layout")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg", type=float, default=5.0)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    pipe = DiffusionPipeline.from_pretrained(args.model, torch_dtype=torch.float32 if args.device == "cpu" else torch.bfloat16)
    pipe = pipe.to(args.device)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    rows, worst = [], 0.0
    for _ in range(args.turns):
        with tempfile.TemporaryDirectory() as folder:
            mine, picture = ours(args, pathlib.Path(folder))
        other, reference = theirs(args, pipe)
        rows.append((mine, other))
        worst = max(worst, np.abs(picture - reference).max())
    for name, column in (("laptop-diff", 0), ("diffusers", 1)):
        times = [row[column] for row in rows]
        print(f"{name:12} median {1e3 * statistics.median(times):9.1f} ms, {1e3 * min(times):9.1f} to {1e3 * max(times):9.1f}")
    ratios = sorted(a / b for a, b in rows)
    print(f"ratio        median {statistics.median(ratios):9.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"pictures differ by at most {worst:.0f} of 255")


if __name__ == "__main__":
    main()

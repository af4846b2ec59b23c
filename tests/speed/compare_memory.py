"""Tensor memory at the peak of a U-Net forward, this program against diffusers' eager mode: same libtorch, weights, shapes, number type.

    python tests/speed/compare_memory.py target/debug/laptop-diff sd15 --latent-size 64
    python tests/speed/compare_memory.py target/debug/laptop-diff sdxl --latent-size 128 --device cuda

On a CPU both processes count their allocations by tests/speed/count_memory.c, and the weights are left out: what remains is how long
tensors live. On a GPU it is what CUDA took beyond its context. Needs a C compiler and what compare_diffusers.py needs.
"""

import argparse
import ctypes
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import compare_diffusers
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

HERE = pathlib.Path(__file__).resolve().parent


def ours(args, model, folder, library):
    out, peak = folder / "forward.safetensors", folder / "peak.txt"
    if args.device != "cpu":
        call = [args.binary, "bench", "--model", model, "--batch", args.batch, "--latent-size", args.latent_size, "--rounds", 1,
                "--compute", args.compute, "--device", args.device, "--out", folder / "speed.json"]
        subprocess.run([str(word) for word in call], check=True, capture_output=True)
        return json.loads((folder / "speed.json").read_text())["footprints"][0]["call"]["device_bytes"]
    call = [args.binary, "forward", "--model", model, "--inputs", folder / "inputs.safetensors", "--compute", args.compute, "--device", "cpu",
            "--out", out]
    subprocess.run([str(word) for word in call], check=True, env=os.environ | {"LD_PRELOAD": str(library), "COUNT_MEMORY": str(peak)},
                   stdout=subprocess.DEVNULL)
    return int(peak.read_text())


def theirs(args):
    """In a process of its own: prints the bytes at the peak and those of the weights."""
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[args.compute]
    unet = UNet2DConditionModel.from_pretrained(args.model, torch_dtype=dtype).to(args.device).eval()
    forward = compare_diffusers.call(unet, load_file(pathlib.Path(args.folder) / "inputs.safetensors"))
    weights = sum(n for n in (p.numel() * p.element_size() for p in unet.parameters()) if n >= 65536)
    counter = ctypes.CDLL(None)
    for name in ("memory_now", "memory_peak"):
        if args.device == "cpu":
            getattr(counter, name).restype = ctypes.c_longlong
    with torch.no_grad():
        if args.device == "cpu":
            before = counter.memory_now()
            counter.memory_reset()
        forward()
    peak = counter.memory_peak() - before + weights if args.device == "cpu" else torch.cuda.max_memory_reserved()
    print(json.dumps({"peak": peak, "weights": weights}))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary")
    parser.add_argument("model", help="a U-Net's folder in diffusers' layout, sd15 or sdxl")
    parser.add_argument("--latent-size", type=int, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--compute", choices=["f32", "bf16", "f16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.compute = args.compute or ("f32" if args.device == "cpu" else "bf16")
    if args.folder:
        return theirs(args)
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        model = compare_diffusers.model_folder(args.model, tmp / "unet")
        config = json.loads((model / "config.json").read_text())
        save_file(compare_diffusers.random_inputs(config, args.batch, args.latent_size), tmp / "inputs.safetensors")
        library = tmp / "count_memory.so"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", str(HERE / "count_memory.c"), "-o", str(library)], check=True)
        environment = os.environ | ({"LD_PRELOAD": str(library)} if args.device == "cpu" else {})
        call = [sys.executable, __file__, args.binary, str(model), "--latent-size", str(args.latent_size), "--compute", args.compute,
                "--device", args.device, "--folder", str(tmp)]
        other = json.loads(subprocess.run(call, check=True, env=environment, capture_output=True, text=True).stdout.splitlines()[-1])
        us, them = ours(args, model, tmp, library) - other["weights"], other["peak"] - other["weights"]
        print(f"{args.model}, {args.batch} x {args.latent_size} x {args.latent_size}, {args.compute}, {args.device}; "
              f"weights {other['weights'] / 1e6:.0f} MB, beyond them:")
        print(f"laptop-diff {us / 1e6:.1f} MB, diffusers {them / 1e6:.1f} MB, ratio {us / them:.2f}")


if __name__ == "__main__":
    main()

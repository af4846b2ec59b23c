"""Scoring pictures, this program against transformers: same libtorch, same weights, same PNG files, same batches, in turns.

    python tests/speed/compare_scorers.py target/debug/laptop-diff --model vit-b-32 --pictures 64
    python tests/speed/compare_scorers.py target/debug/laptop-diff --model vit-l-14 --pictures 16 --batch 8 --turns 3

Needs torch 2.11.0, transformers, torchvision and pillow. From files to scores: decoding, resizing, both towers; loading weights and
tokenizer is not timed. Each turn times either once, after one untimed turn; the printed ratio is the median of the turns' ratios,
because the machine's speed drifts over minutes. `--processor torch` takes transformers' own default, which resizes with torch, in place of
Pillow, which the published scores were made with and this program reproduces. The scores must be alike: else the two did not do
the same work.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import tempfile
import time

import numpy as np
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_clip import CLIPImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

TOKENIZER = pathlib.Path(__file__).parents[1] / "fixtures" / "diffusion" / "tokenizer"
PROMPTS = ["a red circle on a white table", "two cats, sleeping", "a photo of the old harbour at night", "the same by day"]
MODELS = {
    "vit-b-32": ({"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
                 {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "patch_size": 32}, 512),
    "vit-l-14": ({"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
                 {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}, 768),
    # PickScore, HPSv2: the size of their CLIP-H.
    "vit-h-14": ({"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "hidden_act": "gelu"},
                 {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16, "patch_size": 14, "hidden_act": "gelu"}, 1024),
}


def write_model(args, folder):
    """Random weights in transformers' layout, with a tokenizer of 77 tokens."""
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER, model_max_length=77)
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    text, vision, width = MODELS[args.model]
    torch.manual_seed(0)
    config = CLIPConfig(text_config={"max_position_embeddings": 77, "vocab_size": 49408, **text, **special}, vision_config=vision, projection_dim=width)
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    pil = CLIPImageProcessorPil()
    pil.save_pretrained(folder)
    for file in TOKENIZER.iterdir():
        shutil.copy(file, folder)
    settings = json.loads((TOKENIZER / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 77}))
    return model, tokenizer, pil if args.processor == "pil" else CLIPImageProcessor()


def write_pictures(args, folder):
    """Pictures with edges, gradients and noise, and the list that `eval` reads."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    prompts, files = [f"{PROMPTS[i % len(PROMPTS)]}, number {i}" for i in range(args.pictures)], []
    for i in range(args.pictures):
        x, y = np.meshgrid(np.arange(args.size), np.arange(args.size))
        waves = [127 + 80 * np.sin((x * rng.uniform() + y * rng.uniform()) / 20) + 40 * (x > rng.integers(args.size)) for _ in range(3)]
        noise = rng.normal(0, 4, (args.size, args.size, 3))
        files.append(folder / f"{i:05}.png")
        Image.fromarray(np.clip(np.stack(waves, -1) + noise, 0, 255).astype(np.uint8)).save(files[-1])
    settings = {"model": "none", "unet": "none", "prompt_source": "the benchmark", "negative": "", "per_prompt": 1, "seed": 0, "sampler": "ddim",
                "steps": 1, "guidance": 1.0, "size": [args.size, args.size], "latents": None}
    images = [{"file": f.name, "prompt": p, "seed": i} for i, (f, p) in enumerate(zip(files, prompts))]
    (folder / "images.json").write_text(json.dumps({"format": "laptop-diff/images", "version": 1, "settings": settings, "images": images}))
    return prompts, files


def ours(args, model, pictures, out):
    call = [args.binary, "-v", "eval", "--reference", f"teacher={pictures}", "--metric", f"clip-score={model}", "--batch", args.batch,
            "--device", "cpu", "--out", out / "eval.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "RAYON_NUM_THREADS": str(args.threads)}
    done = subprocess.run([str(word) for word in call], check=True, capture_output=True, text=True, env=environment)
    read = re.search(r"images of teacher read in ([0-9.]+) s", done.stderr)
    scored = re.search(r"images of teacher scored by clip_score_published in ([0-9.]+) s", done.stderr)
    assert read and scored, done.stderr
    kept = json.loads((out / "image_scores.json").read_text())["unets"]["teacher"]["clip_score_published"]["values"]
    return float(read[1]) + float(scored[1]), np.array(kept)


def theirs(args, parts, prompts, files):
    model, tokenizer, processor = parts
    start, scores = time.perf_counter(), []
    for first in range(0, len(files), args.batch):
        pictures = [Image.open(f).convert("RGB") for f in files[first:first + args.batch]]
        pixels = processor(pictures, return_tensors="pt").pixel_values
        ids = tokenizer(prompts[first:first + args.batch], padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        with torch.inference_mode():
            out = model(input_ids=ids, pixel_values=pixels)
        cos = (out.image_embeds * out.text_embeds).sum(-1) / out.image_embeds.norm(dim=-1) / out.text_embeds.norm(dim=-1)
        scores.extend((100 * cos).clamp(min=0).tolist())
    return time.perf_counter() - start, np.array(scores)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary")
    parser.add_argument("--model", choices=MODELS, default="vit-b-32")
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor", choices=["pil", "torch"], default="pil")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows, worst = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        parts = write_model(args, folder / "clip")
        prompts, files = write_pictures(args, folder / "pictures")
        for turn in range(args.turns + 1):
            out = folder / f"turn-{turn}"
            out.mkdir()
            mine, scores = ours(args, folder / "clip", folder / "pictures", out)
            other, reference = theirs(args, parts, prompts, files)
            worst = max(worst, np.abs(scores - reference).max())
            if turn > 0:
                rows.append((mine, other))
    for name, column in (("laptop-diff", 0), ("transformers", 1)):
        times = [1e3 * row[column] / args.pictures for row in rows]
        print(f"{name:12} median {statistics.median(times):8.1f} ms a picture, {min(times):8.1f} to {max(times):8.1f}")
    ratios = sorted(a / b for a, b in rows)
    print(f"ratio        median {statistics.median(ratios):8.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}, {args.model}, {args.pictures} pictures of {args.size} pixels, "
          f"batch {args.batch}, {args.processor}, torch {torch.__version__}, {args.threads} threads")
    print(f"scores differ by at most {worst:.1e}")


if __name__ == "__main__":
    main()

"""One step of distillation, this program against plain PyTorch on diffusers: same libtorch, weights, data, losses, in turns.

    python tests/speed/compare_distill.py target/debug/laptop-diff --size tiny
    python tests/speed/compare_distill.py target/debug/laptop-diff --size mid --batch 4
    python tests/speed/compare_distill.py target/debug/laptop-diff --size sdxl --batch 4 --device cuda --peak-tflops 989

`tiny` is assets/tiny-sdxl; `mid` a U-Net of some 100 M parameters with random weights in SDXL's shape, `sdxl` one of SDXL's size, both with the
text features of `tiny`; latents of 16 x 16, 64 x 64 and 128 x 128. The student lacks half of the
parameters (a BK-SDM-style plan). The step of either program: draw a batch from the cache that `laptop-diff cache` wrote, noise it, run
the teacher without gradients and the student, task, output and normalized feature loss at the end of every stage (forward hooks on
diffusers' blocks, as BK-SDM's training code does), backward, clip, AdamW, moving average. Each turn runs both in processes of their
own and takes the mean of their steps after the first; the printed ratio is the median of the turns' ratios. Peak memory is that of the
process (VmHWM); what PyTorch has in memory after its imports, before any network, is printed beside it. On a GPU both compute in bf16
with f32 masters (PyTorch by autocast), memory is what CUDA lent out meanwhile, and the share of the card's matrix rate counts the
multiply-accumulates of teacher and student, the student's three times.

Needs torch 2.11.0, diffusers, numpy and safetensors.
"""

import argparse
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]

SETTINGS = """
taps = "stages"
activation_checkpointing = CHECKPOINTING
[losses]
task_weight = 1.0
output_weight = 1.0
feature_weight = 1.0
feature_loss = "normalized"
norm_power = 2
norm_scope = "sample"
[trainer]
steps = STEPS
batch = BATCH
lr = 1e-4
warmup = 0
lr_schedule = "constant"
lr_end_ratio = 1.0
beta1 = 0.9
beta2 = 0.999
weight_decay = 0.01
clip_norm = 1.0
ema_decay = 0.99
seed = 1
compute = "COMPUTE"
log_every = STEPS
checkpoint_every = 1000000
[data]
source = "cache"
path = "cache"
caption_dropout = 0.1
"""


def rss():
    return int(re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1024


def theirs(folder, batch, steps, threads, device, teacher_bf16):
    """The same steps in PyTorch; prints seconds per step and megabytes."""
    import importlib.util
    import torch
    from diffusers import DDPMScheduler, UNet2DConditionModel
    from safetensors import safe_open

    torch.set_num_threads(threads)
    imports = rss()
    torch.manual_seed(1)
    gpu = device != "cpu"
    teacher = UNet2DConditionModel.from_pretrained(folder / "model/unet", torch_dtype=torch.bfloat16 if gpu or teacher_bf16 else torch.float32)
    teacher = teacher.to(device).eval().requires_grad_(False)
    spec = importlib.util.spec_from_file_location("loader", next((folder / "student").glob("*.py")))
    loader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loader)
    student = loader.load_unet(folder / "student").float().to(device).train()
    # PyTorch's scheduler for v-prediction: noise, velocity.
    scheduler = DDPMScheduler.from_pretrained(folder / "model/scheduler")
    scale = json.loads((folder / "model/vae/config.json").read_text())["scaling_factor"]
    shard = safe_open(next((folder / "cache").glob("*.safetensors")), "pt")
    mean, logvar, text, pooled, ids = (shard.get_tensor(n) for n in ("mean", "logvar", "encoder_hidden_states", "text_embeds", "time_ids"))

    def hooked(unet):
        found = []
        for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks]:
            block.register_forward_hook(lambda _m, _i, out: found.append(out[0] if isinstance(out, tuple) else out))
        return found

    taught, learned = hooked(teacher), hooked(student)
    params = [p for p in student.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-4, betas=(0.9, 0.999), weight_decay=0.01)
    average = [p.detach().clone() for p in params]
    half = teacher.dtype
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        rows = torch.randint(0, len(mean), (batch,))
        std = torch.exp(0.5 * logvar[rows].float())
        x0 = (mean[rows].float() + std * torch.randn_like(std)) * scale
        noise = torch.randn_like(x0)
        t = torch.randint(0, scheduler.config.num_train_timesteps, (batch,))
        x_t = scheduler.add_noise(x0, noise, t)
        target = scheduler.get_velocity(x0, noise, t) if scheduler.config.prediction_type == "v_prediction" else noise
        x_t, target, t = x_t.to(device), target.to(device), t.to(device)
        keep = (torch.rand(batch) >= 0.1).float()
        states = (text[rows].float() * keep.view(-1, 1, 1)).to(device)
        added = {"text_embeds": (pooled[rows].float() * keep.view(-1, 1)).to(device), "time_ids": ids[rows].float().to(device)}
        taught.clear(), learned.clear()
        with torch.no_grad():
            of_teacher = teacher(x_t.to(half), t, states.to(half), added_cond_kwargs={k: v.to(half) for k, v in added.items()}).sample.float()
        with torch.autocast(device, torch.bfloat16, enabled=gpu):
            of_student = student(x_t, t, states, added_cond_kwargs=added).sample.float()
        loss = torch.nn.functional.mse_loss(of_student, target) + torch.nn.functional.mse_loss(of_student, of_teacher)
        for a, b in zip(taught, learned):
            a, b = a.float(), b.float()
            error = (a - b).square().flatten(1).mean(1)
            loss = loss + (error / a.square().flatten(1).mean(1)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, [p.detach() for p in params], 0.01)
        if gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    print(json.dumps({"seconds": statistics.mean(times[1:]), "peak": rss(), "imports": imports}))


def peak_of(call, device, **kwargs):
    """Runs a command; its output and the peak of its memory, or of the GPU's that it took, in megabytes."""
    lent = lambda: 0
    if device != "cpu":
        import torch

        torch.cuda.init()
        before = torch.cuda.mem_get_info()[0]
        lent = lambda: (before - torch.cuda.mem_get_info()[0]) / 1e6
    process = subprocess.Popen([str(c) for c in call], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)
    peak = 0
    status = pathlib.Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            found = re.search(r"VmHWM:\s+(\d+)", status.read_text())
            peak = max(peak, lent() if device != "cpu" else int(found[1]) / 1024 if found else 0)
        except OSError:
            pass
        time.sleep(0.02)
    out, err = process.communicate()
    if process.returncode:
        sys.exit(f"{call}\n{err}")
    return out, peak


def ours(args, folder):
    shutil.rmtree(folder / "out", ignore_errors=True)
    call = [args.binary, "distill", "--model", folder / "model", "--plan", folder / "plan.json", "--config", folder / "distill.toml",
            "--out", folder / "out", "--device", args.device]
    out, peak = peak_of(call, args.device)
    return float(re.search(r"steps of ([\d.]+) s", out)[1]), peak


SHAPES = {
    "mid": {"block_out_channels": [96, 192, 384], "attention_head_dim": [3, 6, 12], "transformer_layers_per_block": [1, 2, 4], "sample_size": 64},
    "sdxl": {"block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20], "transformer_layers_per_block": [1, 2, 10],
             "sample_size": 128},
}


def random_model(folder, size):
    import torch
    from diffusers import UNet2DConditionModel

    config = dict(UNet2DConditionModel.load_config(ROOT / "assets/tiny-sdxl/unet"))
    config |= SHAPES[size] | {"norm_num_groups": 32, "layers_per_block": 2}
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(config)
    print(f"{size}: {sum(p.numel() for p in unet.parameters()) / 1e6:.1f} M parameters")
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary")
    parser.add_argument("--size", choices=["tiny", "mid", "sdxl"], default="tiny")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--teacher-bf16", choices=["ours", "both"], help="whose teacher computes in bf16 on a CPU, too")
    parser.add_argument("--checkpointing", action="store_true", help="let this program compute activations again")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--peak-tflops", type=float, help="the card's matrix rate in bf16, to state the share of it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        shutil.copytree(ROOT / "assets/tiny-sdxl", tmp / "model")
        if args.size != "tiny":
            random_model(tmp / "model", args.size)
        run = lambda *call: subprocess.run([str(c) for c in call], check=True, capture_output=True)
        pixels = {"tiny": 64, "mid": 256, "sdxl": 512}[args.size]
        run(args.binary, "render-scenes", "--count", 64, "--size", pixels, "--out", tmp / "scenes")
        for line in (tmp / "scenes/scenes.jsonl").read_text().splitlines():
            scene = json.loads(line)
            (tmp / "scenes" / f"{scene['index']:05}.txt").write_text(scene["caption"])
        run(args.binary, "cache", "--model", tmp / "model", "--images", tmp / "scenes", "--out", tmp / "cache", "--size", pixels, "--device", "cpu")
        # The hand-crafted plan asks for scores only to price itself.
        run(args.binary, "calibrate", "--model", tmp / "model", "--scenes", 4, "--bins", 2, "--out", tmp / "points.safetensors", "--device", "cpu")
        run(args.binary, "score", "--model", tmp / "model", "--calibration", tmp / "points.safetensors", "--criterion", "magnitude", "--out", tmp / "scores", "--device", "cpu")
        run(args.binary, "plan", "--model", tmp / "model", "--scores", tmp / "scores/magnitude.json", "--method", "bk-sdm", "--ratio", 0.5, "--out", tmp / "plan.json")
        run(args.binary, "prune", "--model", tmp / "model", "--plan", tmp / "plan.json", "--format", "diffusers-loader", "--unet-only", "--out", tmp / "student")
        settings = SETTINGS.replace("STEPS", str(args.steps)).replace("BATCH", str(args.batch)).replace("CHECKPOINTING", str(args.checkpointing).lower())
        settings = settings.replace("COMPUTE", "f32" if args.device == "cpu" else "bf16")
        (tmp / "distill.toml").write_text(('teacher_compute = "bf16"\n' if args.teacher_bf16 else "") + settings)
        macs = [json.loads(run(args.binary, "inspect", "--model", at, "--json").stdout)["table"]["total_macs"] for at in (tmp / "model", tmp / "student")]
        rows = []
        for _ in range(args.turns):
            a = ours(args, tmp)
            out, peak = peak_of([sys.executable, __file__, args.binary, "--theirs", tmp, args.batch, args.steps, args.threads, args.device, int(args.teacher_bf16 == "both")], args.device)
            b = json.loads(out.splitlines()[-1])
            rows.append((a[0], b["seconds"], a[1], peak, b["imports"]))
            print(f"turn: {a[0]:.4f} against {b['seconds']:.4f} s; {a[1]:.0f} against {peak:.0f} MB, {b['imports']:.0f} of it imports", flush=True)
    for name, column in (("laptop-diff", 0), ("PyTorch", 1)):
        times = [row[column] for row in rows]
        print(f"{name:12} median {1e3 * statistics.median(times):9.1f} ms a step, {1e3 * min(times):9.1f} to {1e3 * max(times):9.1f}")
    ratios = sorted(row[0] / row[1] for row in rows)
    print(f"time ratio   median {statistics.median(ratios):9.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}")
    if args.peak_tflops:
        work = 2 * args.batch * (macs[0] + 3 * macs[1]) / 1e12
        for name, column in (("laptop-diff", 0), ("PyTorch", 1)):
            rate = work / statistics.median(row[column] for row in rows)
            print(f"{name:12} {rate:.1f} TFLOP/s, {100 * rate / args.peak_tflops:.0f} % of the card's")
    memory = [statistics.median(row[i] for row in rows) for i in (2, 3, 4)]
    print(f"peak memory  {memory[0]:.0f} against {memory[1]:.0f} MB: {memory[0] / memory[1]:.3f}; less imports {memory[0] / (memory[1] - memory[2]):.3f}")


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[2] == "--theirs":
        theirs(pathlib.Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]), sys.argv[7], sys.argv[8] == "1")
    else:
        main()

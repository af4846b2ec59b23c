"""Two ranks that the real torchrun starts, one of which is killed, train as one rank does.

    python tests/ranks/check_torchrun.py target/debug/laptop-diff

Needs torch 2.11.0 for its torchrun. Trains a student of assets/tiny-sdxl for a few steps by one rank that makes two passes a step, then
by two ranks of one pass each, then by two ranks of which one is killed with SIGKILL: torchrun starts both again, and they go on from
the last checkpoint. All three loss curves must agree within 1e-5 relative, and the students of the two last must have the same bits.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETTINGS = """
taps = "stages"
[losses]
task_weight = 1.0
output_weight = 1.0
feature_weight = 1.0
feature_loss = "normalized"
norm_power = 2
norm_scope = "running"
[trainer]
steps = 20
batch = 4
accumulate = ACCUMULATE
lr = 4e-4
warmup = 5
lr_schedule = "cosine"
lr_end_ratio = 0.05
beta1 = 0.9
beta2 = 0.99
weight_decay = 0.01
clip_norm = 1.0
ema_decay = 0.98
seed = 1
compute = "f32"
log_every = 1
checkpoint_every = 4
shard_optimizer = true
bucket_mb = 1.0
[data]
source = "scenes"
seed = 3
count = 64
caption_dropout = 0.1
"""


def main():
    binary = pathlib.Path(sys.argv[1]).resolve()
    torchrun = pathlib.Path(sys.executable).parent / "torchrun"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "LAPTOP_DIFF_TIMEOUT": "60"}
    with tempfile.TemporaryDirectory() as tmp:
        tmp = pathlib.Path(tmp)
        model, plan = ROOT / "assets/tiny-sdxl", tmp / "plan.json"
        points, scores = tmp / "points.safetensors", tmp / "scores"
        run = lambda *call: subprocess.run([binary, *call], check=True, capture_output=True)
        run("calibrate", "--model", model, "--scenes", "4", "--bins", "2", "--out", points, "--device", "cpu")
        run("score", "--model", model, "--calibration", points, "--criterion", "magnitude", "--out", scores, "--device", "cpu")
        run("plan", "--model", model, "--scores", scores / "magnitude.json", "--method", "bk-sdm", "--ratio", "0.5", "--out", plan)

        def call(out, accumulate):
            settings = tmp / f"{accumulate}.toml"
            settings.write_text(SETTINGS.replace("ACCUMULATE", str(accumulate)))
            return [binary, "distill", "--model", model, "--plan", plan, "--config", settings, "--out", tmp / out, "--device", "cpu"]

        def ranks(out):
            return [torchrun, "--standalone", "--no-python", "--nproc-per-node", "2", "--max-restarts", "1", *call(out, 1)]

        def log(out):
            return [json.loads(line) for line in (tmp / out / "log.jsonl").read_text().splitlines()]

        subprocess.run(call("one", 2), check=True, env=env, capture_output=True)
        subprocess.run(ranks("two"), check=True, env=env, capture_output=True)

        process = subprocess.Popen(ranks("killed"), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        checkpoint = tmp / "killed/.work/checkpoint-00000008.safetensors"
        deadline = time.time() + 300
        while not checkpoint.exists():
            if process.poll() is not None or time.time() > deadline:
                sys.exit(f"no second checkpoint:\n{process.communicate()[0]}")
            time.sleep(0.01)
        found = subprocess.run(["pgrep", "-f", f"{binary} distill .*{tmp}/killed"], capture_output=True, text=True).stdout.split()
        victim = max(int(pid) for pid in found)
        os.kill(victim, signal.SIGKILL)
        output = process.communicate()[0]
        if process.returncode:
            sys.exit(f"torchrun ended with {process.returncode}:\n{output}")
        told = [line for line in output.splitlines() if line.startswith("error: rank")]
        assert told and "another rank stopped" in told[0], output
        print(f"the other rank said: {told[0]}")

        one = log("one")
        for name in ("two", "killed"):
            other = log(name)
            assert len(other) == len(one) == 20, (len(other), len(one))
            worst = max(abs(a["loss"] - b["loss"]) / a["loss"] for a, b in zip(one, other))
            print(f"{name}: largest relative difference of the loss from one rank's: {worst:.1e}")
            assert worst <= 1e-5
        weights = [(tmp / name / "unet/diffusion_pytorch_model.safetensors").read_bytes() for name in ("two", "killed")]
        assert weights[0] == weights[1], "the killed run's student has other bits"
        print("the student of the killed run has the same bits as that of the unharmed one")


if __name__ == "__main__":
    main()

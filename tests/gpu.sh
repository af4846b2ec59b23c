#!/usr/bin/env bash
# What only a machine with a GPU can show, in the order of what is most worth knowing; some ten minutes on a card with 80 GB.
#
#   tests/gpu.sh target/release/laptop-diff OUT
#
# LD_LIBRARY_PATH names the lib folder of a CUDA build of torch 2.11.0. The comparisons need a Python ($PYTHON) with torch, diffusers, numpy
# and safetensors. Every part writes OUT/<part>.txt and may fail without stopping the others; PARTS="same full" runs some only.
set -uo pipefail
binary=$(realpath "$1")
# A folder of its own: results of another run would be gone on from.
mkdir "$2" || exit 2
out=$(realpath "$2")
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
device=${DEVICE:-cuda}
model=assets/tiny-sdxl
failed=0

part() {
    local name=$1
    case " ${PARTS:-same speed memory step full} " in *" $name "*) ;; *) return ;; esac
    local start=$SECONDS
    # Not as a condition: there `set -e` would have no effect.
    (set -e; "$name") >"$out/$name.txt" 2>&1
    local status=$?
    if [ $status -eq 0 ]; then
        echo "$name: ok, $((SECONDS - start)) s"
    else
        echo "$name: FAILED, $((SECONDS - start)) s; the end of $out/$name.txt:"
        tail -n 5 "$out/$name.txt"
        failed=1
    fi
}

# Scores in f32 on the GPU and on the CPU; the same plan must come out. Then once more in TF32: how much farther off that is.
same() {
    "$binary" calibrate --model $model --scenes 8 --device cpu --out "$out/points.safetensors"
    for place in cpu "$device"; do
        "$binary" score --model $model --calibration "$out/points.safetensors" --criterion output_loss --compute f32 --device "$place" --out "$out/$place"
        "$binary" plan --model $model --scores "$out/$place/output_loss.json" --ratio 0.5 --out "$out/$place/plan.json"
    done
    "$binary" --tf32 score --model $model --calibration "$out/points.safetensors" --criterion output_loss --compute f32 --device "$device" --out "$out/tf32"
    "$python" - "$out" "$device" <<'PYTHON'
import json, sys
out, device = sys.argv[1:]
read = lambda name: json.load(open(f"{out}/{name}/output_loss.json"))
values = lambda file: {row["id"]: row["value"] for row in file["scores"]}
cpu = values(read("cpu"))
off = {name: max(abs(v - cpu[k]) / abs(cpu[k]) for k, v in values(read(name)).items()) for name in (device, "tf32")}
print("largest relative difference to the CPU: f32 %.1e, tf32 %.1e" % (off[device], off["tf32"]))
assert (read(device)["settings"]["compute"], read("tf32")["settings"]["compute"]) == ("f32", "tf32")
assert off[device] < 0.01, "f32 on the GPU is not f32"
PYTHON
    "$binary" score --model $model --calibration "$out/points.safetensors" --criterion output_loss --samples 2 --device "$device" --out "$out/default"
    "$binary" generate --model $model --prompt "a large red circle" --device "$device" --out "$out/picture"
    removed() { grep -o '"[a-z_]*blocks\?\.[^"]*"' "$1" | sort -u; }
    diff <(removed "$out/cpu/plan.json") <(removed "$out/$device/plan.json")
}

speed() { "$python" tests/speed/compare_diffusers.py "$binary" sdxl --latent-size 128 --turns 3 --device "$device"; }

memory() { "$python" tests/speed/compare_memory.py "$binary" sdxl --latent-size 128 --device "$device"; }

step() { "$python" tests/speed/compare_distill.py "$binary" --size sdxl --batch 4 --steps 6 --turns 1 --device "$device" --peak-tflops "${PEAK_TFLOPS:-989}"; }

# Twenty steps on SDXL's own architecture with random weights, text encoders and autoencoder included, at 1024 pixels.
full() {
    "$binary" random-model --unet configs/unet/sdxl.json --vae configs/full-sdxl/vae.json --text-encoder configs/full-sdxl/text_encoder.json \
        --text-encoder-2 configs/full-sdxl/text_encoder_2.json --rest $model --kind bf16 --out "$out/sdxl"
    "$binary" render-scenes --count 16 --size 1024 --captions --out "$out/scenes"
    "$binary" calibrate --model "$out/sdxl" --images "$out/scenes" --count 4 --bins 2 --device "$device" --out "$out/full.safetensors"
    "$binary" score --model "$out/sdxl" --calibration "$out/full.safetensors" --criterion output_loss --samples 1 --device "$device" --out "$out/full-scores"
    "$binary" plan --model "$out/sdxl" --scores "$out/full-scores/output_loss.json" --ratio 0.5 --out "$out/full-plan.json"
    "$binary" cache --model "$out/sdxl" --images "$out/scenes" --size 1024 --device "$device" --out "$out/cache"
    sed "s/^steps = .*/steps = 20/; s/^accumulate = .*/accumulate = 1/; s/^batch = 8/batch = 4/; s/^warmup = .*/warmup = 2/; s/^log_every = .*/log_every = 1/; s|^path = .*|path = \"$out/cache\"|; /^\[validation\]/,\$d" \
        configs/distill-sdxl.toml >"$out/distill.toml"
    "$binary" distill --model "$out/sdxl" --plan "$out/full-plan.json" --config "$out/distill.toml" --device "$device" --out "$out/student"
    rm -rf "$out/sdxl" "$out/student" "$out/cache"
}

for name in same speed memory step full; do
    part "$name"
done
exit $failed

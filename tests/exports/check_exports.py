"""Loads what `laptop-diff prune --format ...` writes into real diffusers and compares it with this program's own forward pass.

    cargo xtask check-exports        # makes an environment with torch and diffusers (3 GB) once, then runs this

or, with an environment of your own: python tests/exports/check_exports.py target/debug/laptop-diff

Every architecture of tests/fixtures/unet, several removals each: branches, ResNets, whole blocks, whole transformers. Each result
also takes the residuals of a ControlNet made for the original, and gives what the original gives with its branches switched off.
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "fixtures"))
from gen_unet import remove

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures" / "unet"
TOLERANCE = 1e-4


def call(binary, *args):
    done = subprocess.run([binary, *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, args))}\n{done.stdout}{done.stderr}")
    return done.stdout


def plan_for(binary, model, removed, folder):
    """A plan with exactly these layers: every layer costs 1, so nothing goes that is not asked for."""
    table = json.loads(call(binary, "inspect", "--model", model, "--json"))["table"]
    rows = [{"id": layer["id"], "value": 1.0, "standard_error": None, "samples": []} for layer in table["layers"]]
    scores = {"format": "laptop-diff/scores", "version": 1, "criterion": "ones", "seed": None, "settings": {}, "first_sample": 0,
              "bins": [], "scores": rows, "table": table}
    (folder / "scores.json").write_text(json.dumps(scores))
    plan = folder / "plan.json"
    call(binary, "plan", "--scores", folder / "scores.json", "--params", 1, "--out", plan, *[a for id in removed for a in ("--remove", id)])
    assert set(json.loads(plan.read_text())["removed"]) == set(removed)
    return plan


def run(unet, inputs, residuals=None):
    added = {k: inputs[k] for k in ("text_embeds", "time_ids") if k in inputs} or None
    down, mid = residuals or (None, None)
    with torch.no_grad():
        return unet.float()(
            inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"], added_cond_kwargs=added,
            down_block_additional_residuals=down, mid_block_additional_residual=mid,
        ).sample


def control_residuals(original, inputs):
    """What a ControlNet of the original, with random weights where it starts with zeros, adds to the skips and the mid block."""
    torch.manual_seed(7)
    net = ControlNetModel.from_unet(original).eval()
    for name, p in net.named_parameters():
        if name.startswith(("controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(p, std=0.2)
    height, width = inputs["sample"].shape[-2:]
    picture = torch.rand(inputs["sample"].shape[0], 3, 8 * height, 8 * width)
    added = {k: inputs[k] for k in ("text_embeds", "time_ids") if k in inputs} or None
    with torch.no_grad():
        out = net(inputs["sample"], inputs["timestep"], inputs["encoder_hidden_states"], picture, added_cond_kwargs=added)
    return [t.float() for t in out.down_block_res_samples], out.mid_block_res_sample.float()


def metadata(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def from_single(path):
    """diffusers' own conversion of the original layout, into the architecture that the file names."""
    config = json.loads(metadata(path)["laptop_diff.config"])
    state = {k: v for k, v in load_file(path).items() if k.startswith("model.diffusion_model.")}
    unet = UNet2DConditionModel.from_config(config)
    unet.load_state_dict(convert_ldm_unet_checkpoint(state, dict(unet.config)), strict=True)
    return unet.eval()


def removals(branches, rng):
    blocks = sorted({b.rsplit(".", 1)[0] for b in branches if ".transformer_blocks." in b})
    transformers = sorted({b.split(".transformer_blocks")[0] for b in blocks})
    resnets = [b for b in branches if ".resnets." in b]
    inside = lambda prefixes: [b for b in branches if any(b.startswith(p + ".") for p in prefixes)]
    return {
        "branches": sorted(rng.sample(branches, max(1, len(branches) // 3))),
        "resnets": rng.sample(resnets, max(1, len(resnets) // 3)),
        "blocks": inside(rng.sample(blocks, max(1, len(blocks) // 2))),
        "transformers": inside(rng.sample(transformers, max(1, len(transformers) // 3))),
    }


def main(binary):
    worst = 0.0
    for name in ("sd15", "sd21", "sdxl", "rare", "nomid"):
        model = FIXTURES / name
        cases = load_file(model / "cases.safetensors")
        inputs = {k[len("input."):]: v for k, v in cases.items() if k.startswith("input.")}
        original = UNet2DConditionModel.from_pretrained(model).float().eval()
        # A ControlNet has a mid block, and as many ResNets at every level.
        residuals = None if name in ("nomid", "rare") else control_residuals(original, inputs)
        branches = [layer["id"] for layer in json.loads(call(binary, "inspect", "--model", model, "--json"))["table"]["layers"]]
        with tempfile.TemporaryDirectory() as tmp:
            tmp = pathlib.Path(tmp)
            save_file(inputs, tmp / "inputs.safetensors")
            # The full network through the original layout: the same tensors under the same names.
            if name != "rare":  # its transformer without blocks has no place in that layout
                call(binary, "prune", "--model", model, "--format", "original", "--unet-only", "--out", tmp / "full.safetensors")
                state = from_single(tmp / "full.safetensors").state_dict()
                known = load_file(model / "diffusion_pytorch_model.safetensors")
                assert state.keys() == known.keys() and all(torch.equal(state[k], known[k].float()) for k in known), name
            for what, removed in removals(branches, random.Random(name)).items():
                work = tmp / what
                work.mkdir()
                plan = plan_for(binary, model, removed, work)
                call(binary, "forward", "--model", model, "--plan", plan, "--inputs", tmp / "inputs.safetensors", "--out", work / "own.safetensors", "--device", "cpu")
                own = load_file(work / "own.safetensors")["sample"]
                if residuals:
                    handles = remove(original, removed)
                    controlled = run(original, inputs, residuals)
                    for handle in handles:
                        handle.remove()
                    assert (controlled - own).abs().max() > 100 * TOLERANCE, "the ControlNet does nothing"
                for form in ("diffusers", "diffusers-loader", "neutral", "original"):
                    out = work / (form + (".safetensors" if form == "original" else ""))
                    made = subprocess.run([binary, "prune", "--model", model, "--plan", plan, "--unet-only", "--format", form, "--out", out], capture_output=True, text=True)
                    if made.returncode != 0:
                        # Depths of the fixtures are those of no published model.
                        assert form == "original" and "ComfyUI cannot load this network" in made.stderr, made.stderr
                        print(f"{name:6} {what:13} {form:17} not possible")
                        continue
                    if form == "diffusers-loader":
                        sys.path.insert(0, str(out))
                        import laptop_diff_unet

                        sys.path.pop(0)
                        unet = laptop_diff_unet.load_unet(out)
                    elif form == "original":
                        config = json.loads(metadata(out)["laptop_diff.removed"])
                        if config:
                            # Absent transformers: ComfyUI's layout can say that, diffusers' conversion cannot.
                            print(f"{name:6} {what:13} {form:17} absent transformers, which diffusers' conversion cannot say: read by this program")
                            reread = work / "reread.safetensors"
                            call(binary, "forward", "--model", out, "--inputs", tmp / "inputs.safetensors", "--out", reread, "--device", "cpu")
                            assert torch.allclose(load_file(reread)["sample"], own, atol=1e-6)
                            continue
                        unet = from_single(out)
                    else:
                        unet = UNet2DConditionModel.from_pretrained(out)
                    off = (run(unet, inputs) - own).abs().max().item()
                    if residuals:
                        off = max(off, (run(unet, inputs, residuals) - controlled).abs().max().item())
                    count = sum(p.numel() for p in unet.parameters())
                    print(f"{name:6} {what:13} {form:17} {count:8} parameters, differs by {off:.1e}")
                    assert off <= TOLERANCE, (name, what, form, off)
                    if form == "diffusers-loader":
                        assert count == json.loads(plan.read_text())["params_left"]
                    worst = max(worst, off)
    print(f"exports: all agree with diffusers, under a ControlNet too; largest difference {worst:.1e}")


if __name__ == "__main__":
    main(sys.argv[1])

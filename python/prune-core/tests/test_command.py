"""One model, two programs: the command `laptop-diff` and this package score the embedded SDXL-shaped U-Net alike, and read each
other's files. The environment variable LAPTOP_DIFF names the command; without it there is nothing to compare with."""

import os
import pathlib
import subprocess

import pytest

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
if "LAPTOP_DIFF" not in os.environ:
    pytest.skip("LAPTOP_DIFF does not name the command", allow_module_level=True)

from safetensors.torch import load_file, safe_open

import prune_core as pc

MODEL = pathlib.Path(__file__).parents[3] / "assets" / "tiny-sdxl"


def laptop_diff(*words):
    done = subprocess.run([os.environ["LAPTOP_DIFF"], *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A calibration set of six points and its scores, by the command."""
    folder = tmp_path_factory.mktemp("command")
    laptop_diff("calibrate", "--model", MODEL, "--scenes", 6, "--out", folder / "points.safetensors")
    laptop_diff("score", "--model", MODEL, "--calibration", folder / "points.safetensors", "--criterion", "output_loss", "--out", folder / "scores")
    return folder


def batches(folder, size):
    points = load_file(folder / "points.safetensors")
    for at in range(0, len(points["x_t"]), size):
        part = {name: tensor[at : at + size] for name, tensor in points.items()}
        conditions = {"text_embeds": part["text_embeds"], "time_ids": part["time_ids"]}
        yield {"sample": part["x_t"], "timestep": part["timesteps"], "encoder_hidden_states": part["encoder_hidden_states"], "added_cond_kwargs": conditions}


def test_scores_plans_and_files_agree(folder):
    torch.set_num_threads(1)
    unet = diffusers.UNet2DConditionModel.from_pretrained(MODEL / "unet")
    theirs = pc.Scores.read(folder / "scores" / "output_loss.json")

    # Parameters, MACs, shared costs, order: counted here on one sample, there in closed form.
    mine = pc.branches(unet, example=next(batches(folder, 1)), name=theirs.table.model, fingerprint=theirs.table.fingerprint)
    assert mine.table == theirs.table

    # Under the command's own table, as one does who has its files.
    branches = pc.branches(unet, table=theirs.table)
    scores = pc.score(unet, batches(folder, 4), branches=branches, bins=theirs.bins)
    # Branches that do next to nothing change outputs by less than the last digits of f32.
    assert scores.values == pytest.approx(theirs.values, rel=1e-5, abs=1e-7)

    laptop_diff("plan", "--model", MODEL, "--scores", folder / "scores" / "output_loss.json", "--ratio", "0.4", "--out", folder / "theirs.json")
    plan = pc.solve(scores, ratio=0.4)
    assert pc.solve(theirs, ratio=0.4) == pc.Plan.read(folder / "theirs.json", branches.table)
    assert plan.removed == pc.Plan.read(folder / "theirs.json", branches.table).removed

    # The command plans over these scores and prunes by this plan; what it writes computes what is cut here.
    scores.write(folder / "mine.json")
    plan.write(folder / "plan.json")
    laptop_diff("plan", "--model", MODEL, "--scores", folder / "mine.json", "--ratio", "0.4", "--out", folder / "again.json")
    assert pc.Plan.read(folder / "again.json", branches.table).removed == plan.removed
    laptop_diff("prune", "--model", MODEL, "--plan", folder / "plan.json", "--out", folder / "pruned")
    (file,) = (folder / "pruned" / "unet").glob("*.safetensors")
    with safe_open(file, "pt") as pruned:
        written = {name: pruned.get_tensor(name) for name in pruned.keys()}
    pc.apply(unet, plan)
    cut = unet.state_dict()
    assert written.keys() == cut.keys() and all(torch.equal(written[name], cut[name]) for name in cut)


def test_a_table_of_another_model_is_refused(folder):
    theirs = pc.Scores.read(folder / "scores" / "output_loss.json")
    config = diffusers.UNet2DConditionModel.load_config(MODEL / "unet")
    other = diffusers.UNet2DConditionModel.from_config({**config, "layers_per_block": 1})
    with pytest.raises(pc.errors.OtherModelError, match="take the table of this model's scores"):
        pc.branches(other, table=theirs.table)

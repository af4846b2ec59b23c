"""Draws docs/images/study-tiny.png from study-tiny.json (matplotlib 3)."""

import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = pathlib.Path(__file__).parent
NAMES = {
    "output_loss": "output loss",
    "refined": "refined",
    "task_loss_delta": "task loss",
    "clip_score": "CLIP score",
    "magnitude": "magnitude",
    "taylor": "Taylor",
    "random": "random",
    "bk-sdm": "BK-SDM style",
}
COLORS = ["#8f8f8f", "#1f77b4"]

study = json.loads((HERE / "study-tiny.json").read_text())
ratios = sorted({row["ratio"] for row in study["joint"]})
figure, axes = plt.subplots(2, len(ratios), figsize=(11, 6.4), sharex="col", sharey="row")
places = range(len(NAMES))


def rows(measure, ratio):
    found = {r["plan"]: r for r in study["features_compared"] if r["measure"] == measure and r["ratio"] == ratio}
    return [found[plan] for plan in NAMES]


for column, ratio in enumerate(ratios):
    loss, prompts = axes[0][column], axes[1][column]
    before = {r["plan"]: r for r in study["joint"] if r["ratio"] == ratio}
    loss.plot(places, [before[p]["loss"] for p in NAMES], "_", color="black", markersize=14, label="not retrained")
    for kind, (name, color) in enumerate(zip(study["features"], COLORS)):
        shift = [place + (kind - 0.5) * 0.3 for place in places]
        loss.plot(shift, [r["means"][kind] for r in rows("joint output loss", ratio)], "o", color=color, label=name)
        prompts.bar(shift, [r["means"][kind] for r in rows("prompts all right, %", ratio)], 0.28, color=color, label=name)
    loss.set_yscale("log")
    loss.set_title(f"ratio {ratio}")
    prompts.set_xticks(list(places), NAMES.values(), rotation=60, ha="right")
    for axis in (loss, prompts):
        axis.grid(axis="y", alpha=0.3)
axes[0][0].set_ylabel("joint output loss")
axes[1][0].set_ylabel("prompts all right, %")
axes[0][0].legend(frameon=False, fontsize=8)
figure.tight_layout()
figure.savefig(HERE.parent / "images/study-tiny.png", dpi=110)

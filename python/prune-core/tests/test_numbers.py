"""Scores from anywhere: plans against all subsets, the forms that numbers come in, messages, files. Needs numpy alone."""

import itertools
import json
import os
import pickle
import random
import signal
import subprocess
import sys

import numpy as np
import prune_core as pc
import pytest

COSTS = {"a": 30, "b": 25, "c": 25}
SCORES = {"a": 0.5, "b": 0.1, "c": 0.3}


def test_one_line_gives_the_best_set():
    plan = pc.solve(COSTS, SCORES, ratio=0.5)
    assert plan.removed == ["b", "c"] and plan.kept == ["a"]
    assert (plan.params_removed, plan.params_left, plan.optimal, plan.method) == (50, 30, True, "exact")
    assert plan.predicted == plan.lower_bound == 0.4


@pytest.mark.parametrize("costs", [[30, 25, 25], (30, 25, 25), np.array([30, 25, 25]), np.array([30, 25, 25], dtype=np.int32), np.array([30.0, 25.0, 25.0])])
@pytest.mark.parametrize("scores", [[0.5, 0.1, 0.3], np.array([0.5, 0.1, 0.3]), np.array([0.5, 0.1, 0.3], dtype=np.float64)])
def test_arrays_are_layers_in_order(costs, scores):
    assert pc.solve(costs, scores, ratio=0.5).removed == ["1", "2"]


def test_names_come_from_whoever_has_them():
    assert pc.solve([30, 25, 25], SCORES, ratio=0.5).removed == ["b", "c"]
    assert pc.solve(COSTS, np.array([0.5, 0.1, 0.3]), ratio=0.5).removed == ["b", "c"]
    table = pc.LayerTable(["a", "b", "c"], [30, 25, 25], total_params=160)
    assert pc.solve(table, SCORES, ratio=0.25).params_ratio == 50 / 160


def test_rows_of_samples_are_averaged_and_have_error_bars():
    plan = pc.solve(COSTS, np.array([[0.4, 0.6], [0.1, 0.1], [0.2, 0.4]]), ratio=0.5)
    assert plan.removed == ["b", "c"] and plan.predicted == pytest.approx(0.4)
    scores = pc.Scores.from_samples(plan.table, {"a": [0.4, 0.6], "b": [0.1, 0.1], "c": [0.2, 0.4]}, bins=[0, 7])
    assert scores.standard_errors["c"] == pytest.approx(0.1) and scores.bin_means("a") == {0: 0.4, 7: 0.6}


def test_frames_and_series():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"params": [30, 25, 25], "macs": [1, 2, 3], "latency_ns": [5, 6, 7]}, index=list("abc"))
    series = pandas.Series(SCORES)
    assert pc.solve(frame["params"], series, ratio=0.5).removed == ["b", "c"]
    plan = pc.solve(frame, series, at_least={"latency_ns": 7}, at_most={"macs": 3})
    assert plan.removed == ["c"] and plan.limits == [("latency_ns", 7, None, 7), ("macs", None, 3, 3)]
    # A row per layer, a column per sample; another order of rows than the costs'.
    samples = pandas.DataFrame([[0.2, 0.4], [0.5, 0.5], [0.1, 0.1]], index=list("cab"))
    assert pc.solve(frame, samples, ratio=0.5).removed == ["b", "c"]


def subsets(ids):
    return itertools.chain.from_iterable(itertools.combinations(ids, size) for size in range(len(ids) + 1))


@pytest.mark.parametrize("seed", range(60))
def test_plans_are_the_best_of_all_subsets(seed):
    rng = random.Random(seed)
    ids = [f"layer.{at}" for at in range(rng.randint(1, 9))]
    costs = {id: {"params": rng.randint(1, 20), "macs": rng.randint(1, 9), "kv": rng.choice([0, 0, 4])} for id in ids}
    # Whole numbers, so that sums are exact; some negative, many ties.
    scores = {id: float(rng.randint(-3, 12)) for id in ids}
    total = {name: sum(row[name] for row in costs.values()) for name in ("params", "macs", "kv")}
    keep = [id for id in ids if rng.random() < 0.1]
    together = [rng.sample(ids, 2)] if len(ids) > 3 and rng.random() < 0.5 else []
    requires = {ids[0]: ids[-1]} if len(ids) > 2 and rng.random() < 0.5 else {}
    least = rng.randint(0, total["params"])
    at_least = {"kv": rng.randint(0, total["kv"])} if rng.random() < 0.5 else {}
    at_most = {"macs": rng.randint(0, total["macs"])} if rng.random() < 0.5 else {}

    def gone(chosen, name):
        return sum(costs[id][name] for id in chosen)

    def allowed(chosen):
        chosen = set(chosen)
        return (
            not chosen.intersection(keep)
            and all(chosen.issuperset(group) or not chosen.intersection(group) for group in together)
            and all(needs in chosen or layer not in chosen for layer, needs in requires.items())
            and gone(chosen, "params") >= least
            and all(gone(chosen, name) >= amount for name, amount in at_least.items())
            and all(gone(chosen, name) <= amount for name, amount in at_most.items())
        )

    values = [sum(scores[id] for id in chosen) for chosen in subsets(ids) if allowed(chosen)]
    arguments = dict(params=least, at_least=at_least, at_most=at_most, keep=keep, together=together, requires=requires)
    if not values:
        with pytest.raises(pc.errors.InfeasibleError):
            pc.solve(costs, scores, **arguments)
        return
    plan = pc.solve(costs, scores, **arguments)
    assert plan.predicted == min(values) and allowed(plan.removed) and plan.optimal


def test_a_front_holds_the_optimum_of_every_budget():
    rng = random.Random(5)
    ids = [str(at) for at in range(10)]
    costs = {id: {"params": rng.randint(1, 50), "ns": rng.randint(1, 50)} for id in ids}
    scores = {id: float(rng.randint(1, 100)) for id in ids}
    for name in ("params", "ns"):
        front = pc.front(costs, scores, resource=name)
        assert front.error == 0 and front.points[0] == (0, 0.0)
        for amount in range(1, sum(row[name] for row in costs.values()) + 1, 7):
            best = min(sum(scores[i] for i in c) for c in subsets(ids) if sum(costs[i][name] for i in c) >= amount)
            plan = pc.plan_at(front, amount=amount)
            assert plan.predicted == best and sum(costs[i][name] for i in plan.removed) >= amount
    assert pc.plan_at(pc.front(costs, scores), ratio=0.3) == pc.solve(costs, scores, ratio=0.3)


def test_shares_are_read_as_the_decimals_that_were_written():
    # 0.07 of 100 is 7, although the nearest float lies above 0.07; the same of a resource, and from below for a most.
    ones = {str(at): {"params": 1, "ns": 1} for at in range(100)}
    scores = {id: 1.0 for id in ones}
    assert len(pc.solve(ones, scores, ratio=0.07)) == 7
    assert len(pc.solve(ones, scores, at_least={"ns": 0.07})) == 7
    assert len(pc.solve(ones, {id: -1.0 for id in ones}, at_most={"ns": 0.29})) == 29


def test_resources_beside_a_table_take_shares_of_the_whole_model():
    table = pc.LayerTable(["a", "b"], [10, 10])
    whole = pc.Resource({"a": 30, "b": 20}, total=100)
    assert pc.solve(table, {"a": 1.0, "b": 2.0}, at_least={"ns": 0.25}, resources={"ns": whole}).removed == ["a"]
    assert pc.solve(table, {"a": 1.0, "b": 2.0}, at_least={"ns": 0.31}, resources={"ns": whole}).removed == ["a", "b"]
    assert pc.solve(table, {"a": 1.0, "b": 2.0}, at_least={"ns": 0.31}, resources={"ns": {"a": 30, "b": 20}}).removed == ["a"]


def test_interactions_change_the_best_set():
    pair = [("b", "c", 5.0)]
    assert pc.solve(COSTS, SCORES, ratio=0.5, interactions=pair).removed == ["a", "b"]


WRONG = [
    (lambda: pc.solve(COSTS, SCORES), pc.errors.InvalidInputError, "no limit is given"),
    (lambda: pc.solve(COSTS, SCORES, ratio=2.0), ValueError, "`ratio` is 2; expected a number from 0 to 1"),
    (lambda: pc.solve(COSTS, SCORES, ratio=0.5, params=3), ValueError, "both a ratio and an amount"),
    (lambda: pc.solve(COSTS, {**SCORES, "d": 1.0}, ratio=0.5), pc.errors.UnknownLayerError, "unknown layer `d`"),
    (lambda: pc.solve(COSTS, {"a": 1.0}, ratio=0.5), ValueError, "none for `b`; finish scoring"),
    (lambda: pc.solve(COSTS, {**SCORES, "c": float("nan")}, ratio=0.5), ValueError, "`score` of `c` is NaN"),
    (lambda: pc.solve({"a": 1.5}, {"a": 1.0}, ratio=0.5), ValueError, "costs are whole numbers"),
    (lambda: pc.solve({"a": -1}, {"a": 1.0}, ratio=0.5), ValueError, "from 0 to 2**64 - 1"),
    (lambda: pc.solve({"a": 1 << 64}, {"a": 1.0}, ratio=0.5), ValueError, "from 0 to 2**64 - 1"),
    (lambda: pc.solve({"a": "x"}, {"a": 1.0}, ratio=0.5), ValueError, "expected a whole number"),
    (lambda: pc.solve({}, {}, ratio=0.5), ValueError, "name no layer"),
    (lambda: pc.solve([1, 2], [1.0], ratio=0.5), ValueError, "1 scores for 2 layers"),
    (lambda: pc.solve(np.ones((2, 2)), [1.0, 2.0], ratio=0.5), ValueError, "2 axes"),
    (lambda: pc.solve("abc", {"a": 1.0}, ratio=0.5), ValueError, "expected a mapping"),
    (lambda: pc.solve({"a": {"params": 1}, "b": {"macs": 1}}, {"a": 1.0, "b": 1.0}, ratio=0.5), ValueError, "costs of `b`"),
    (lambda: pc.solve(COSTS, SCORES, ratio=0.9, keep=["a"]), pc.errors.InfeasibleError, "ask for less or pin fewer layers"),
    (lambda: pc.solve(COSTS, SCORES, ratio=0.1, keep="a"), ValueError, "put the name into a list"),
    (lambda: pc.solve(COSTS, SCORES, ratio=0.1, keep=["a"], remove=["a"]), ValueError, "both kept and removed"),
    (lambda: pc.solve(COSTS, SCORES, at_least={"ns": 3}), ValueError, "there is no resource `ns`; there are: params, macs"),
    (lambda: pc.solve(COSTS, SCORES, at_least={"params": 1.5}), ValueError, "a float is a share from 0 to 1"),
    (lambda: pc.solve(COSTS, SCORES, at_least={"params": 3}, at_most={"params": 2}), pc.errors.InfeasibleError, "loosen one"),
    (lambda: pc.solve(COSTS, SCORES, ratio=0.5, time_limit=-1.0), ValueError, "expected seconds"),
    (lambda: pc.Scores.read("nowhere.json"), OSError, "nowhere.json"),
    (lambda: pc.Scores.from_json("{}"), pc.errors.FormatError, "`format`"),
    (lambda: pc.LayerTable(["a"], [1, 2]), ValueError, "`params` has 2 entries for 1 layers"),
    (lambda: pc.LayerTable(["a", "a"], [1, 2]), ValueError, "appears twice"),
]


@pytest.mark.parametrize("call, kind, words", WRONG, ids=range(len(WRONG)))
def test_bad_input_is_told_in_one_line(call, kind, words):
    with pytest.raises(kind) as raised:
        call()
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert isinstance(raised.value, pc.errors.PruneCoreError)


def test_the_nearest_name_is_suggested():
    with pytest.raises(pc.errors.UnknownLayerError, match="did you mean `blocks.0.attn`"):
        pc.solve({"blocks.0.attn": 1}, {"blocks.0.attn": 1.0}, ratio=0.5, keep=["blocks.0.atn"])


def test_files_are_those_of_the_command(tmp_path):
    table = pc.LayerTable(["a", "b", "c"], [30, 25, 25], [3, 2, 1], kinds=["x", "y", "y"], stages=["s", "s", "t"], model="m", fingerprint="f",
                          total_params=100, total_macs=9, shared_costs=[("block", ["b", "c"], 5, 1)])
    scores = pc.Scores.from_samples(table, {"a": [0.5], "b": [0.1], "c": [0.3]}, criterion="output_loss")
    scores.write(tmp_path / "scores.json")
    assert pc.Scores.read(tmp_path / "scores.json", table) == scores
    plan = pc.solve(scores, ratio=0.5)
    plan.write(tmp_path / "plan.json")
    assert pc.Plan.read(str(tmp_path / "plan.json"), table) == plan
    fields = json.loads((tmp_path / "plan.json").read_text())
    assert fields["format"] == "prune-core/plan" and fields["removed"] == ["b", "c"] and fields["removed_shared_costs"] == ["block"]
    assert fields["params_removed"] == 55 and fields["macs_removed"] == 4 and fields["fingerprint"] == "f"
    other = pc.LayerTable(["a", "b", "c"], [30, 25, 25], model="other", fingerprint="g")
    with pytest.raises(pc.errors.OtherModelError, match="make it again for this model"):
        pc.Plan.read(tmp_path / "plan.json", other)
    (tmp_path / "plan.json").write_text((tmp_path / "plan.json").read_text().replace('"params_removed": 55', '"params_removed": 54'))
    with pytest.raises(pc.errors.FormatError, match="plan.json.*edited or damaged"):
        pc.Plan.read(tmp_path / "plan.json", table)


def test_values_survive_pickling_and_show_themselves():
    plan = pc.solve(COSTS, SCORES, ratio=0.5)
    for value in (plan, plan.table, pc.Scores(plan.table, SCORES)):
        assert pickle.loads(pickle.dumps(value)) == value
    assert "2 of 3 layers" in repr(plan) and "optimal" in repr(plan)
    assert "<table>" in plan._repr_html_() and "proven optimal" in plan._repr_html_()
    assert "<svg" in pc.front(COSTS, SCORES)._repr_html_()
    odd = pc.solve({"<b>": 1, "c": 2}, {"<b>": 1.0, "c": 1.0}, ratio=0.1)
    assert "<b>" not in odd._repr_html_().replace("<b>1 of", "") and "&lt;b&gt;" in odd._repr_html_()


def test_torch_is_not_imported_by_numbers():
    code = "import sys, prune_core as pc; pc.solve({'a': 1}, {'a': 1.0}, ratio=0.5); print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False False\n"


# Every score lies the same above its cost: no bound tells sets apart, so the search would go on for long.
INTERRUPTED = """
import os, random, signal, threading, prune_core as pc
rng = random.Random(0)
costs = {str(at): rng.randrange(1, 10**6) for at in range(5000)}
scores = {id: cost + 1e5 for id, cost in costs.items()}
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    pc.solve(costs, scores, ratio=0.5)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_ctrl_c_ends_a_search():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=120)
    assert done.stdout == "interrupted\n", done.stderr


def test_a_time_limit_gives_the_best_so_far_with_its_bound():
    rng = random.Random(0)
    costs = {str(at): rng.randrange(1, 10**6) for at in range(5000)}
    plan = pc.solve(costs, {id: cost + 1e5 for id, cost in costs.items()}, ratio=0.5, time_limit=0.2)
    assert plan.params_removed >= sum(costs.values()) / 2 and plan.lower_bound <= plan.predicted <= 1.01 * plan.lower_bound


def test_other_programs_get_whole_layers():
    ids = [f"model.layers.{at}.{part}" for at in range(5) for part in ("self_attn", "mlp")]
    table = pc.LayerTable(ids, [4, 8] * 5)
    gone = [id for id in ids if id.startswith(("model.layers.1.", "model.layers.3."))]
    plan = pc.Plan(table, gone)
    assert pc.export.layer_indices(plan) == [1, 3]
    assert pc.export.llama_cpp(plan) == "--prune-layers 1,3"
    recipe = pc.export.mergekit(plan, "org/model")
    assert [line.strip() for line in recipe.splitlines() if "layer_range" in line] == ["layer_range: [0, 1]", "layer_range: [2, 3]", "layer_range: [4, 5]"]
    assert recipe.startswith("slices:\n  - sources:\n      - model: org/model\n") and "merge_method: passthrough" in recipe
    with pytest.raises(ValueError, match="`model.layers.0.mlp` goes and `model.layers.0.self_attn` stays"):
        pc.export.llama_cpp(pc.Plan(table, ["model.layers.0.mlp"]))
    with pytest.raises(ValueError, match="one numbered list"):
        pc.export.llama_cpp(pc.Plan(pc.LayerTable(["down.0.attentions.1.ff"], [1]), ["down.0.attentions.1.ff"]))

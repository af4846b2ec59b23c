"""Solves the instances that `cargo bench --bench classes -- FOLDER/` wrote by HiGHS and OR-Tools' CP-SAT, one thread each.

    python rivals.py FOLDER PREFIX [SECONDS]

Prints, per instance, milliseconds and value of both, and whether prune-core's value was undercut; then medians and percentiles.
"""

import json
import pathlib
import sys
import time

import highspy
import numpy as np
from ortools.sat.python import cp_model

folder, prefix, seconds = pathlib.Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]) if len(sys.argv) > 3 else 10.0


def highs(instance):
    n = len(instance["scores"])
    solver = highspy.Highs()
    solver.silent()
    for key, value in [("threads", 1), ("time_limit", seconds), ("mip_rel_gap", 0.0), ("mip_abs_gap", 1e-9)]:
        solver.setOptionValue(key, value)
    kept = set(instance.get("keep", []))
    solver.addVars(n, np.zeros(n), np.array([0.0 if i in kept else 1.0 for i in range(n)]))
    for i, score in enumerate(instance["scores"]):
        solver.changeColCost(i, score)
        solver.changeColIntegrality(i, highspy.HighsVarType.kInteger)
    for limit in instance["limits"]:
        low, high = limit["at_least"], limit["at_most"]
        solver.addRow(-highspy.kHighsInf if low is None else low, highspy.kHighsInf if high is None else high, n, np.arange(n, dtype=np.int32),
                      np.array(limit["costs"], dtype=float))
    for layer, needs in instance["requires"]:
        solver.addRow(-highspy.kHighsInf, 0.0, 2, np.array([layer, needs], dtype=np.int32), np.array([1.0, -1.0]))
    start = time.process_time()
    solver.run()
    spent = time.process_time() - start
    info = solver.getInfo()
    return spent * 1e3, info.objective_function_value, solver.getModelStatus() == highspy.HighsModelStatus.kOptimal, info.mip_gap


def cp_sat(instance):
    model = cp_model.CpModel()
    scale = 1 if all(float(score).is_integer() for score in instance["scores"]) else 1e9 / max(instance["scores"])
    x = [model.NewBoolVar("") for _ in instance["scores"]]
    for limit in instance["limits"]:
        total = sum(cost * var for cost, var in zip(limit["costs"], x))
        if limit["at_least"] is not None:
            model.Add(total >= limit["at_least"])
        if limit["at_most"] is not None:
            model.Add(total <= limit["at_most"])
    for layer, needs in instance["requires"]:
        model.AddImplication(x[layer], x[needs])
    for layer in instance.get("keep", []):
        model.Add(x[layer] == 0)
    model.Minimize(sum(round(score * scale) * var for score, var in zip(instance["scores"], x)))
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_time_in_seconds = seconds
    start = time.process_time()
    status = solver.Solve(model)
    spent = time.process_time() - start
    value = solver.ObjectiveValue() / scale if status in (cp_model.OPTIMAL, cp_model.FEASIBLE) else float("nan")
    bound = solver.BestObjectiveBound() / scale
    return spent * 1e3, value, status == cp_model.OPTIMAL, abs(value - bound) / abs(value)


times = {"highs": [], "cp-sat": []}
undercut = 0
for path in sorted(folder.glob(f"{prefix}*.json")):
    instance = json.loads(path.read_text())
    line = [path.stem]
    for name, solve in [("highs", highs), ("cp-sat", cp_sat)]:
        spent, value, proven, gap = solve(instance)
        times[name].append(spent)
        line.append(f"{name} {spent:.1f} ms {'proven' if proven else f'gap {gap:.1e}'}")
        mine = instance.get("value")
        if mine is not None and value < mine - 1e-6 * abs(mine):
            undercut += 1
            line.append(f"UNDERCUT {value} < {mine}")
    print("  ".join(line))
for name, spent in times.items():
    spent.sort()
    at = lambda part: spent[int((len(spent) - 1) * part)]
    print(f"{name}: median {at(0.5):.1f}, 90 % {at(0.9):.1f}, 99 % {at(0.99):.1f}, most {at(1.0):.1f} ms")
print(f"{undercut} values undercut")

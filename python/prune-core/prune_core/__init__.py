"""Which layers of a network can go: measured scores, exact search, audit.

From numbers alone::

    import prune_core
    plan = prune_core.solve({"a": 30, "b": 25, "c": 25}, {"a": 0.5, "b": 0.1, "c": 0.3}, ratio=0.5)

From a PyTorch model (``pip install prune-core[torch]``)::

    branches = prune_core.branches(model)
    scores = prune_core.score(model, batches, branches=branches)
    plan = prune_core.solve(scores, ratio=0.3)
    prune_core.apply(model, plan)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import errors, export
from ._core import Front, LayerTable, Plan, Scores, __version__
from .search import Resource, front, plan_at, solve

if TYPE_CHECKING:
    from .network import Branch, Branches, branches, latency
    from .patterns import Form, Pattern
    from .results import AdaptiveScores, Audit, MeasuredFront, Refined
    from .scoring import audit, kl_loss, measured_front, output_loss, refine, run_model, score, score_adaptively
    from .surgery import apply, load

# What needs torch is imported when it is first used.
_LATER = {
    **dict.fromkeys(["Branch", "Branches", "branches", "latency"], "network"),
    **dict.fromkeys(["Form", "Pattern"], "patterns"),
    **dict.fromkeys(["AdaptiveScores", "Audit", "MeasuredFront", "Refined"], "results"),
    **dict.fromkeys(["audit", "kl_loss", "measured_front", "output_loss", "refine", "run_model", "score", "score_adaptively"], "scoring"),
    **dict.fromkeys(["apply", "load"], "surgery"),
}

__all__ = [
    "AdaptiveScores",
    "Audit",
    "Branch",
    "Branches",
    "Form",
    "Front",
    "LayerTable",
    "MeasuredFront",
    "Pattern",
    "Plan",
    "Refined",
    "Resource",
    "Scores",
    "__version__",
    "apply",
    "audit",
    "branches",
    "errors",
    "export",
    "front",
    "kl_loss",
    "latency",
    "load",
    "measured_front",
    "output_loss",
    "plan_at",
    "refine",
    "run_model",
    "score",
    "score_adaptively",
    "solve",
]


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        raise ImportError(f"`prune_core.{name}` measures PyTorch models; pip install prune-core[torch]") from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

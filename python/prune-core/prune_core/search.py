"""Choosing what goes: numbers, arrays or measured scores in, a plan with its proof out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Integral, Real
from typing import Any, Optional, Union

from . import _core
from ._inputs import CostsLike, ScoresLike, as_scores, whole
from .errors import InfeasibleError, InvalidInputError

__all__ = ["Resource", "front", "plan_at", "solve"]

Amount = Union[int, float]
"""A whole number in the resource's own unit, or a float from 0 to 1: a share of the whole model's."""


@dataclass(frozen=True)
class Resource:
    """A further whole-number cost of the layers: bytes of cache, nanoseconds, ...

    ``costs`` says what goes with each layer (0 for those that it does not name), ``total`` what the whole model costs (by
    default the sum), of which shares are taken. ``shared`` says what goes with each shared cost of the table.
    """

    costs: Mapping[str, int]
    total: Optional[int] = None
    shared: Mapping[str, int] = field(default_factory=dict)

    @property
    def whole(self) -> int:
        """What the whole model costs."""
        return sum(self.costs.values()) + sum(self.shared.values()) if self.total is None else self.total


Resources = Mapping[str, Union[Resource, Mapping[str, int]]]


def solve(
    costs: Union[CostsLike, _core.Scores],
    scores: Optional[ScoresLike] = None,
    *,
    ratio: Optional[float] = None,
    params: Optional[int] = None,
    macs_ratio: Optional[float] = None,
    macs: Optional[int] = None,
    at_least: Optional[Mapping[str, Amount]] = None,
    at_most: Optional[Mapping[str, Amount]] = None,
    resources: Optional[Resources] = None,
    keep: Iterable[str] = (),
    remove: Iterable[str] = (),
    together: Iterable[Iterable[str]] = (),
    requires: Union[Mapping[str, str], Iterable[tuple[str, str]]] = (),
    interactions: Iterable[tuple[str, str, float]] = (),
    time_limit: Optional[float] = None,
    node_limit: Optional[int] = None,
    memory_limit: Optional[int] = None,
) -> _core.Plan:
    """The set of layers with the least sum of scores among all that remove enough: the optimum, with its proof.

    ``solve(costs, scores, ratio=0.5)`` takes numbers from anywhere: dictionaries, NumPy arrays, pandas Series, or a DataFrame
    of costs with the columns ``params``, ``macs`` or others. ``solve(scores, ratio=0.5)`` takes measured ``Scores``, which know
    their costs.

    Give at least one limit:

    - ``ratio``, ``macs_ratio``: at least this share (0 to 1) of the whole model's parameters or multiply-accumulates goes;
    - ``params``, ``macs``: at least this many go;
    - ``at_least={"latency_ns": 3_000_000, "kv_bytes": 0.25}``, ``at_most=...``: of any resource, whole numbers or shares.

    ``resources`` adds costs to ``params`` and ``macs``; ``keep`` and ``remove`` pin layers; each group of ``together`` goes or
    stays as a whole; ``requires={a: b}`` lets a go only where b goes.

    Without ``time_limit`` (seconds) the same call gives the same plan on every machine. Whatever ends a search, the best set so
    far comes back: ``plan.optimal`` says whether it is proven, ``plan.lower_bound`` what no set undercuts.

    Raises InfeasibleError where nothing meets the limits, InvalidInputError, UnknownLayerError.
    """
    measured, resources = _scores(costs, scores, resources)
    budgets = [
        (cost, None if share is None else float(share), None if amount is None else whole(amount, cost))
        for cost, share, amount in (("params", ratio, params), ("macs", macs_ratio, macs))
        if share is not None or amount is not None
    ]
    limits = _limits(measured.table, at_least or {}, at_most or {}, resources)
    for cost, share, amount in budgets:
        if share is not None and amount is not None:
            raise InvalidInputError(f"both a ratio and an amount of {cost} are given; give one of them")
    if not budgets and not limits:
        raise InvalidInputError("no limit is given; say how much is to go, for example ratio=0.5")
    for cost, share, amount in budgets[1:]:
        limits.append((cost, _amount(measured.table, cost, amount if share is None else share, resources, up=True), None))
    return _core.solve(
        measured,
        budgets[0] if budgets else None,
        limits,
        rules(keep, remove, together, requires, resources, interactions),
        _effort(time_limit, node_limit, memory_limit),
    )


def front(
    costs: Union[CostsLike, _core.Scores],
    scores: Optional[ScoresLike] = None,
    *,
    resource: str = "params",
    resources: Optional[Resources] = None,
    keep: Iterable[str] = (),
    remove: Iterable[str] = (),
    together: Iterable[Iterable[str]] = (),
    requires: Union[Mapping[str, str], Iterable[tuple[str, str]]] = (),
    interactions: Iterable[tuple[str, str, float]] = (),
    time_limit: Optional[float] = None,
    memory_limit: Optional[int] = None,
) -> _core.Front:
    """The whole trade-off over one resource in one pass: for every amount that may go, the least sum of scores.

    Arguments are those of `solve`. ``plan_at(front, ratio=0.3)`` gives the plan for a budget, ``front.points`` the curve.
    """
    measured, resources = _scores(costs, scores, resources)
    return _core.front(
        measured,
        resource,
        rules(keep, remove, together, requires, resources, interactions),
        _effort(time_limit, None, memory_limit),
    )


def plan_at(front: _core.Front, *, ratio: Optional[float] = None, amount: Optional[int] = None) -> _core.Plan:
    """The plan of a front for at least this share of the whole model's cost, or at least this amount.

    Shares are of parameters or multiply-accumulates; fronts over other resources take amounts.
    """
    if (ratio is None) == (amount is None):
        raise InvalidInputError("give either a ratio or an amount")
    if front.resource in ("params", "macs"):
        return front.budget_plan((front.resource, ratio, amount))
    if amount is None:
        raise InvalidInputError(f"a front over {front.resource} does not know the whole model's; give an amount instead of a ratio")
    index = front.find(amount)
    removed = None if index is None else front.removed(index)
    if removed is None:
        most = front.points[-1][0] if len(front) else 0
        raise InfeasibleError(f"the budget asks for {amount} {front.resource} to go, but at most {most} can; ask for less")
    return _core.Plan(front.scores.table, removed, method="exact" if front.error == 0 else "bounded", scores=front.scores)


def rules(
    keep: Iterable[str] = (),
    remove: Iterable[str] = (),
    together: Iterable[Iterable[str]] = (),
    requires: Union[Mapping[str, str], Iterable[tuple[str, str]]] = (),
    resources: Optional[Resources] = None,
    interactions: Iterable[tuple[str, str, float]] = (),
) -> dict[str, Any]:
    """What restricts a choice, as the extension takes it."""
    if isinstance(keep, str) or isinstance(remove, str):
        raise InvalidInputError("`keep` and `remove` are lists of layers; put the name into a list")
    return {
        "keep": list(keep),
        "remove": list(remove),
        "together": [list(group) for group in together],
        "requires": list(requires.items() if isinstance(requires, Mapping) else requires),
        "resources": [
            (
                name,
                {id: whole(cost, f"{name} of {id}") for id, cost in given.costs.items()},
                {id: whole(cost, f"{name} of {id}") for id, cost in given.shared.items()},
            )
            for name, given in normal(resources).items()
        ],
        "interactions": [(first, second, float(score)) for first, second, score in interactions],
    }


def normal(resources: Optional[Resources]) -> dict[str, Resource]:
    """Every resource as a `Resource`."""
    return {name: given if isinstance(given, Resource) else Resource(given) for name, given in (resources or {}).items()}


def _scores(
    costs: Union[CostsLike, _core.Scores], scores: Optional[ScoresLike], resources: Optional[Resources]
) -> tuple[_core.Scores, Resources]:
    measured, further = as_scores(costs, scores)
    twice = sorted(set(further) & set(resources or {}))
    if twice:
        raise InvalidInputError(f"`{twice[0]}` is both a column of the costs and in `resources`; give it once")
    return measured, {**further, **(resources or {})}


def _effort(time_limit: Optional[float], node_limit: Optional[int], memory_limit: Optional[int]) -> dict[str, Any]:
    return {"time_limit": time_limit, "node_limit": node_limit, "memory_limit": memory_limit}


def limits_of(plan: _core.Plan) -> list[tuple[str, Optional[int], Optional[int]]]:
    """The limits for which a plan was made, as the extension takes them; that it removes as much where it names none."""
    named: Sequence[tuple[str, Optional[int], Optional[int]]] = [(name, low, high) for name, low, high, _ in plan.limits]
    return list(named) or [("params", plan.params_removed, None)]


def _limits(
    table: _core.LayerTable, at_least: Mapping[str, Amount], at_most: Mapping[str, Amount], resources: Resources
) -> list[tuple[str, Optional[int], Optional[int]]]:
    low = [(name, _amount(table, name, amount, resources, up=True), None) for name, amount in at_least.items()]
    high = [(name, None, _amount(table, name, amount, resources, up=False)) for name, amount in at_most.items()]
    return [*low, *high]


def _amount(table: _core.LayerTable, name: str, amount: Optional[Amount], resources: Resources, *, up: bool) -> int:
    """A limit as a whole number: shares are taken of the decimal that was written, so 0.07 of 100 is 7."""
    if isinstance(amount, bool) or not isinstance(amount, Real):
        raise InvalidInputError(f"the limit on {name} is {amount!r}; expected a whole number or a share from 0 to 1")
    if isinstance(amount, Integral):
        return whole(amount, f"the limit on {name}")
    share = float(amount)
    if not 0.0 <= share <= 1.0:
        raise InvalidInputError(f"the limit on {name} is {share}; a float is a share from 0 to 1, an amount is a whole number")
    known = {"params": table.total_params, "macs": table.total_macs}
    total = known[name] if name in known else normal(resources)[name].whole if name in resources else 0
    exact = Fraction(repr(share)) * total
    return math.ceil(exact) if up else math.floor(exact)

"""Numbers as people have them: dictionaries, sequences, NumPy arrays, pandas Series and DataFrames. None of these is imported."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional, Union

from . import _core
from .errors import InvalidInputError

CostsLike = Union[_core.LayerTable, Mapping[str, Any], Sequence[Any], Any]
"""Costs: a table, ``{layer: params}``, ``{layer: {"params": ..., "macs": ..., other: ...}}``, an array, a Series, a DataFrame."""

ScoresLike = Union[Mapping[str, float], Sequence[float], Any]
"""Scores: ``{layer: score}``, an array or a Series; two axes are samples per layer, ``[layers, samples]``."""


def whole(number: Any, what: str) -> int:
    """A cost as a Python integer, of whatever integer type; floats that are whole numbers count as such."""
    if isinstance(number, bool):
        raise InvalidInputError(f"{what} is {number}; expected a whole number, 0 or more")
    try:
        result = operator.index(number)
    except TypeError:
        try:
            result = int(number)
        except (TypeError, ValueError, OverflowError):
            raise InvalidInputError(f"{what} is {number!r}; expected a whole number, 0 or more") from None
        if result != number:
            raise InvalidInputError(f"{what} is {number!r}; costs are whole numbers: round it, or use a smaller unit") from None
    if not 0 <= result < 1 << 64:
        raise InvalidInputError(f"{what} is {result}; expected a whole number from 0 to 2**64 - 1")
    return result


def as_scores(costs: Any, scores: Any) -> tuple[_core.Scores, dict[str, dict[str, int]]]:
    """Scores over their table, and the costs that are neither parameters nor multiply-accumulates."""
    if isinstance(costs, _core.Scores):
        if scores is not None:
            raise InvalidInputError("scores are given twice; `Scores` know their costs, so give them alone")
        return costs, {}
    if scores is None:
        raise InvalidInputError("scores are missing; give them after the costs, or give measured `Scores` alone")
    if isinstance(scores, _core.Scores):
        scores = scores.values
    table, further = as_table(costs, _names(scores))
    return _core.Scores(table, _values(scores, table.ids)) if not _has_samples(scores) else _sampled(scores, table), further


def as_table(costs: Any, names: Optional[list[str]] = None) -> tuple[_core.LayerTable, dict[str, dict[str, int]]]:
    """The table behind costs. Layers without names are called as the scores call them, or by their numbers."""
    if isinstance(costs, _core.LayerTable):
        return costs, {}
    columns = _columns(costs, names)
    ids = list(next(iter(columns.values())))
    if not ids:
        raise InvalidInputError("the costs name no layer; give one cost per layer")
    further = {name: column for name, column in columns.items() if name not in ("params", "macs")}
    known = [name for name in ("params", "macs") if name in columns]
    # A layer must cost something that the table knows: where neither is given, the first resource stands for the parameters.
    params = columns.get("params") or (further[next(iter(further))] if not known else dict.fromkeys(ids, 0))
    macs = columns.get("macs")
    table = _core.LayerTable(
        ids, [params[id] for id in ids], None if macs is None else [macs[id] for id in ids], model="numbers"
    )
    return table, further


def _columns(costs: Any, names: Optional[list[str]]) -> dict[str, dict[str, int]]:
    """Costs by resource, then by layer."""
    if hasattr(costs, "columns") and hasattr(costs, "index"):
        ids = [str(id) for id in costs.index]
        given = {str(column): list(costs[column]) for column in costs.columns}
        if not given:
            raise InvalidInputError("the frame of costs has no column; name one `params`, `macs` or as you like")
        return {name: _column(ids, column, name) for name, column in given.items()}
    named = _names(costs)
    if named is not None:
        values = [costs[id] for id in costs.keys()]
        if values and isinstance(values[0], Mapping):
            resources = list(values[0])
            for id, row in zip(named, values):
                if not isinstance(row, Mapping) or set(row) != set(resources):
                    raise InvalidInputError(f"the costs of `{id}` are {row!r}; expected the keys {', '.join(map(str, resources))}")
            return {str(name): _column(named, [row[name] for row in values], str(name)) for name in resources}
        return {"params": _column(named, values, "params")}
    values = _list(costs, "costs")
    ids = names if names is not None else [str(at) for at in range(len(values))]
    return {"params": _column(ids, values, "params")}


def _column(ids: list[str], values: list[Any], name: str) -> dict[str, int]:
    if len(ids) != len(values):
        raise InvalidInputError(f"there are {len(values)} costs ({name}) for {len(ids)} layers; give one for each")
    if len(set(ids)) != len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        raise InvalidInputError(f"`{twice}` appears twice in the costs; name each layer once")
    return {id: whole(value, f"the {name} of `{id}`") for id, value in zip(ids, values)}


def _values(scores: Any, ids: list[str]) -> dict[str, float]:
    names = _names(scores)
    if names is not None:
        return {name: _number(scores[key], name) for name, key in zip(names, scores.keys())}
    values = _list(scores, "scores")
    if len(values) != len(ids):
        raise InvalidInputError(f"there are {len(values)} scores for {len(ids)} layers; give one for each, in the order of the costs")
    return {id: _number(value, id) for id, value in zip(ids, values)}


def _sampled(scores: Any, table: _core.LayerTable) -> _core.Scores:
    if hasattr(scores, "index") and hasattr(scores, "loc"):
        rows = {str(id): [float(x) for x in scores.loc[id]] for id in scores.index}
    elif isinstance(scores, Mapping):
        rows = {str(id): [float(x) for x in row] for id, row in scores.items()}
    else:
        listed = [[float(x) for x in row] for row in scores]
        if len(listed) != len(table):
            raise InvalidInputError(f"there are scores for {len(listed)} layers, costs for {len(table)}; the first axis is the layers'")
        rows = dict(zip(table.ids, listed))
    return _core.Scores.from_samples(table, rows, criterion="score")


def _has_samples(scores: Any) -> bool:
    """Whether there are several numbers for each layer."""
    ndim = getattr(scores, "ndim", None)
    if isinstance(ndim, int):
        return ndim == 2
    first: Any = next(iter(scores.values() if isinstance(scores, Mapping) else scores), None)
    return isinstance(first, Sequence) or getattr(first, "ndim", 0) == 1


def _names(values: Any) -> Optional[list[str]]:
    """The layers that a mapping, a Series or a DataFrame names; None for a plain list or array."""
    if hasattr(values, "index") and hasattr(values, "columns"):
        return [str(name) for name in values.index]
    if hasattr(values, "keys"):
        return [str(name) for name in values.keys()]
    return None


def _list(values: Any, what: str) -> list[Any]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InvalidInputError(f"{what} are {values!r}; expected a mapping, a list, an array, a Series or a DataFrame")
    ndim = getattr(values, "ndim", 1)
    if ndim != 1:
        raise InvalidInputError(f"{what} have {ndim} axes; expected one number per layer")
    return list(values)


def _number(value: Any, name: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidInputError(f"the score of `{name}` is {value!r}; expected a number") from None

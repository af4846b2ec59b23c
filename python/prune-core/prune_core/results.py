"""What measuring a model gives: audits, refined plans, adaptive scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any, Optional, Union

from . import _core, _display
from .errors import InfeasibleError, InvalidInputError

__all__ = ["AdaptiveScores", "Audit", "MeasuredFront", "Refined"]


@dataclass(frozen=True)
class AdaptiveScores:
    """Scores of which some have more samples than others."""

    scores: Any
    """`Scores`, or a dictionary of them for several losses."""
    certificates: Sequence[Mapping[str, Any]]
    """For each ratio, how sure the plan is."""
    evaluations: int
    """Evaluations done, branches times samples."""
    full_evaluations: int
    """Those of full scoring."""


class _Document:
    """A result that is a file of JSON, as the command reads and writes it."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._fields: dict[str, Any] = json.loads(text)

    def to_json(self) -> str:
        """The file as text."""
        return self._text

    def write(self, path: Union[str, PathLike[str]]) -> None:
        """Writes the file, whole or not at all."""
        path = Path(path)
        new = path.with_name(f".{path.name}.new")
        new.write_text(self._text)
        new.replace(path)


class Audit(_Document):
    """Predicted against measured joint losses of sets of branches."""

    @property
    def criteria(self) -> list[str]:
        """The criteria whose sums were compared."""
        return [audit["criterion"] for audit in self._fields["audits"]]

    @property
    def sets(self) -> list[dict[str, Any]]:
        """The sets: ``stratum`` (what it was drawn for, or the plan's name), ``removed``, ``losses`` by criterion."""
        return list(self._fields["sets"])

    def _of(self, criterion: Optional[str]) -> dict[str, Any]:
        audits: list[dict[str, Any]] = self._fields["audits"]
        return next((audit for audit in audits if criterion in (None, audit["criterion"])), audits[0])

    def slope(self, stratum: Optional[str] = None, criterion: Optional[str] = None) -> Optional[float]:
        """Measured over predicted loss, through the origin: 1 for perfect additivity. None where it is not defined."""
        return self._statistic("slope", stratum, criterion)

    def spearman(self, stratum: Optional[str] = None, criterion: Optional[str] = None) -> Optional[float]:
        """Rank correlation of predicted and measured losses: does the sum rank sets rightly?"""
        return self._statistic("spearman", stratum, criterion)

    def _statistic(self, name: str, stratum: Optional[str], criterion: Optional[str]) -> Optional[float]:
        audit = self._of(criterion)
        value = (audit["overall"] if stratum is None else audit["strata"][stratum])[name]
        return None if value is None else float(value)

    @property
    def strata(self) -> list[str]:
        """What sets were drawn for, such as ``params_ratio=0.5``, and the names of plans."""
        return list(self._of(None)["strata"])

    def points(self, criterion: Optional[str] = None) -> list[tuple[float, float]]:
        """Predicted and measured loss of each set."""
        audit = self._of(criterion)
        return list(zip(audit["predicted"], audit["measured"]))

    def measured(self, plan: str, criterion: Optional[str] = None) -> float:
        """The measured joint loss of a plan, by the name that it was given."""
        audit = self._of(criterion)
        at = next(at for at, one in enumerate(self._fields["sets"]) if one["stratum"] == plan)
        return float(audit["measured"][at])

    def __repr__(self) -> str:
        slope, spearman = self.slope(), self.spearman()
        told = ", ".join(f"{name} {value:.2f}" for name, value in (("slope", slope), ("rank correlation", spearman)) if value is not None)
        return f"Audit({len(self.sets)} sets, {told})"

    def _repr_html_(self) -> str:
        audit = self._of(None)
        body = (
            (name, one["sets"], *("" if one[key] is None else f"{one[key]:.3f}" for key in ("slope", "spearman", "pearson")))
            for name, one in {**audit["strata"], "all": audit["overall"]}.items()
        )
        head = ("sets", "number", "slope (1: losses add up)", "rank correlation", "correlation")
        return f"<p>{escape(repr(self))}</p>" + _display.rows(head, body, len(audit["strata"]) + 1)


class Refined(_Document):
    """A refined plan, and how it was found."""

    def __init__(self, plan: _core.Plan, record: str) -> None:
        super().__init__(record)
        self.plan = plan

    @property
    def start_loss(self) -> float:
        """Joint loss of the start on the same samples."""
        return float(self._fields["outcome"]["start_held_out"]["mean"])

    @property
    def loss(self) -> float:
        """Joint loss of the refined plan on held-out samples that chose nothing."""
        return float(self._fields["outcome"]["held_out"]["mean"])

    @property
    def forwards(self) -> int:
        """Evaluations done: samples times sets."""
        return int(self._fields["forwards"])

    def __repr__(self) -> str:
        return f"Refined({self.plan!r}, held-out loss {self.start_loss:.4g} -> {self.loss:.4g} in {self.forwards} evaluations)"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>" + _display.plan(self.plan)


class MeasuredFront(_Document):
    """The best measured plans over all budgets: none removes at least as much as another and loses less."""

    def __init__(self, text: str, scores: _core.Scores) -> None:
        super().__init__(text)
        self._scores = scores

    @property
    def resource(self) -> str:
        """What budgets count."""
        return str(self._fields["resource"])

    @property
    def points(self) -> list[tuple[int, float, float]]:
        """For each plan, by ascending cost: what goes, the sum of its scores, and its joint loss on samples that chose nothing."""
        name = self.resource
        return [(int(plan["costs"][name]), float(plan["predicted"]), float(plan["held_out"]["mean"])) for plan in self._fields["plans"]]

    @property
    def plans(self) -> list[_core.Plan]:
        """The plans, in the order of `points`."""
        return [self._plan(plan["removed"]) for plan in self._fields["plans"]]

    @property
    def forwards(self) -> int:
        """Evaluations done: samples times sets."""
        return int(self._fields["forwards"])

    def plan_at(self, *, ratio: Optional[float] = None, amount: Optional[int] = None) -> _core.Plan:
        """The plan that loses least among those that remove at least this share of the whole model, or this amount."""
        table = self._scores.table
        totals = {"params": table.total_params, "macs": table.total_macs}
        if (ratio is None) == (amount is None) or (ratio is not None and self.resource not in totals):
            raise InvalidInputError(f"give either a ratio or an amount, and of {self.resource} an amount unless it is params or macs")
        needed = amount if ratio is None else math.ceil(Fraction(repr(float(ratio))) * totals[self.resource])
        enough = [plan for plan in self._fields["plans"] if needed is not None and plan["costs"][self.resource] >= needed]
        if not enough:
            most = max((cost for cost, _, _ in self.points), default=0)
            raise InfeasibleError(f"no measured plan removes {needed} {self.resource}; at most {most} go; ask for less")
        return self._plan(min(enough, key=lambda plan: float(plan["loss"]["mean"]))["removed"])

    def _plan(self, removed: Sequence[str]) -> _core.Plan:
        return _core.Plan(self._scores.table, list(removed), method="measured-front", scores=self._scores)

    def __len__(self) -> int:
        return len(self._fields["plans"])

    def __repr__(self) -> str:
        return f"MeasuredFront({len(self)} plans over {self.resource}, {self.forwards} evaluations)"

    def _repr_html_(self) -> str:
        points = self.points
        lines = [("predicted", [(float(cost), sum_) for cost, sum_, _ in points]), ("measured", [(float(cost), loss) for cost, _, loss in points])]
        return f"<p>{escape(repr(self))}</p>" + _display.curve(lines)

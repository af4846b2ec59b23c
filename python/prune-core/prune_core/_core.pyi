"""Types of the extension module."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, final

from typing_extensions import Self

__version__: str

_Budget = tuple[str, float | None, int | None]
_Limit = tuple[str, int | None, int | None]
_Rules = Mapping[str, Any]
_Effort = Mapping[str, Any]

@final
class LayerTable:
    """The removable layers of a model, in the order of the forward pass, and what each costs.

    Costs are whole numbers: parameters, and multiply-accumulates of one forward pass (0 where they are not counted).
    ``total_params`` and ``total_macs`` are those of the whole model, by default of all that can go.
    """

    def __init__(
        self,
        ids: Sequence[str],
        params: Sequence[int],
        macs: Sequence[int] | None = None,
        *,
        kinds: Sequence[str] | None = None,
        stages: Sequence[str] | None = None,
        model: str | None = None,
        fingerprint: str | None = None,
        total_params: int | None = None,
        total_macs: int | None = None,
        shared_costs: Sequence[tuple[str, Sequence[str], int, int]] = ...,
    ) -> None: ...
    @property
    def ids(self) -> list[str]: ...
    @property
    def params(self) -> list[int]: ...
    @property
    def macs(self) -> list[int]: ...
    @property
    def kinds(self) -> list[str]: ...
    @property
    def stages(self) -> list[str]: ...
    @property
    def shared_costs(self) -> list[tuple[str, list[str], int, int]]:
        """Costs that go with the last of their members: name, members, parameters, multiply-accumulates."""
    @property
    def model(self) -> str: ...
    @property
    def fingerprint(self) -> str:
        """Hash of weights and configuration, or of the costs; files made for another one are refused."""
    @property
    def total_params(self) -> int: ...
    @property
    def total_macs(self) -> int: ...
    def cost_of(self, ids: Sequence[str]) -> tuple[int, int]:
        """Parameters and multiply-accumulates that go with these layers, shared costs included."""
    def to_json(self) -> str: ...
    @classmethod
    def from_json(cls, text: str) -> Self: ...
    def __len__(self) -> int: ...
    def __contains__(self, id: str) -> bool: ...
    def _repr_html_(self) -> str: ...

@final
class Scores:
    """Scores of a model's layers under one criterion: lower means that the layer matters less."""

    def __init__(self, table: LayerTable, values: Mapping[str, float], *, criterion: str = "score") -> None: ...
    @classmethod
    def from_samples(
        cls,
        table: LayerTable,
        samples: Mapping[str, Sequence[float]],
        *,
        criterion: str = "loss",
        bins: Sequence[int] | None = None,
    ) -> Self:
        """Scores that are means over samples: one list of losses per layer, as many in each."""
    @property
    def table(self) -> LayerTable: ...
    @property
    def criterion(self) -> str: ...
    @property
    def values(self) -> dict[str, float]: ...
    @property
    def standard_errors(self) -> dict[str, float]: ...
    @property
    def num_samples(self) -> int: ...
    @property
    def bins(self) -> list[int]: ...
    @property
    def settings_json(self) -> str: ...
    @property
    def missing(self) -> list[str]: ...
    def samples(self, id: str) -> list[float]:
        """The losses behind the score of a layer, one per sample."""
    def bin_means(self, id: str) -> dict[int, float]: ...
    def predicted(self, ids: Sequence[str]) -> float:
        """The sum of the scores of these layers: their joint loss, if losses add up."""
    def to_json(self) -> str: ...
    @classmethod
    def from_json(cls, text: str) -> Self: ...
    def write(self, path: str | PathLike[str]) -> None:
        """Writes ``scores.json``, whole or not at all."""
    @classmethod
    def read(cls, path: str | PathLike[str], table: LayerTable | None = None) -> Self:
        """Reads a ``scores.json``, made here or by the command ``laptop-diff score``."""
    def __getitem__(self, id: str) -> float: ...
    def __len__(self) -> int: ...
    def _repr_html_(self) -> str: ...

@final
class Plan:
    """A set of layers to remove from one model."""

    def __init__(
        self, table: LayerTable, removed: Sequence[str], *, method: str = "by hand", scores: Scores | None = None
    ) -> None: ...
    @property
    def table(self) -> LayerTable: ...
    @property
    def removed(self) -> list[str]:
        """The layers that go, in the order of the forward pass."""
    @property
    def kept(self) -> list[str]: ...
    @property
    def removed_shared_costs(self) -> list[str]: ...
    @property
    def method(self) -> str: ...
    @property
    def criterion(self) -> str | None: ...
    @property
    def predicted(self) -> float | None:
        """Sum of the scores of the removed layers: the joint loss if losses add up."""
    @property
    def lower_bound(self) -> float | None:
        """No set that meets the limits has a lower sum."""
    @property
    def optimal(self) -> bool: ...
    @property
    def params_removed(self) -> int: ...
    @property
    def params_left(self) -> int: ...
    @property
    def params_ratio(self) -> float: ...
    @property
    def macs_removed(self) -> int: ...
    @property
    def macs_left(self) -> int: ...
    @property
    def macs_ratio(self) -> float: ...
    @property
    def limits(self) -> list[tuple[str, int | None, int | None, int]]:
        """The limits that it was made for: resource, at least, at most, and what goes of it."""
    def to_json(self) -> str: ...
    @classmethod
    def from_json(cls, text: str, table: LayerTable) -> Self: ...
    def write(self, path: str | PathLike[str]) -> None:
        """Writes ``plan.json``, whole or not at all."""
    @classmethod
    def read(cls, path: str | PathLike[str], table: LayerTable) -> Self:
        """Reads a ``plan.json``, made here or by the command ``laptop-diff plan``, and checks it against its model."""
    def __contains__(self, id: str) -> bool: ...
    def __len__(self) -> int: ...
    def _repr_html_(self) -> str: ...

@final
class Front:
    """Every set worth removing under one resource: for any budget the optimum is a look-up."""

    @property
    def resource(self) -> str: ...
    @property
    def error(self) -> float:
        """By how much the scores of all points may lie above the least ones: 0 for an exact front."""
    @property
    def points(self) -> list[tuple[int, float]]:
        """By ascending cost: what goes, and the least sum of scores for which as much can go."""
    @property
    def scores(self) -> Scores: ...
    def budget_plan(self, budget: _Budget) -> Plan: ...
    def find(self, needed: int) -> int | None: ...
    def removed(self, index: int) -> list[str] | None:
        """The layers behind the point with this index."""
    def __len__(self) -> int: ...
    def _repr_html_(self) -> str: ...

@final
class Model:
    def __init__(
        self,
        table: LayerTable,
        criteria: Sequence[str],
        bins: Sequence[int],
        sets_at_once: int,
        evaluate: Callable[[list[list[str]], int, int], list[list[list[float]]]],
    ) -> None: ...

def solve(scores: Scores, budget: _Budget | None, limits: Sequence[_Limit], rules: _Rules, effort: _Effort) -> Plan: ...
def front(scores: Scores, resource: str, rules: _Rules, effort: _Effort) -> Front: ...
def certify(scores: Scores, budget: _Budget, rules: _Rules, delta: float, of_samples: bool) -> str: ...
def score(
    model: Model, run: Mapping[str, Any], resume: Sequence[Scores], on_save: Callable[[list[Scores]], object] | None
) -> list[Scores]: ...
def score_adaptively(
    model: Model,
    run: Mapping[str, Any],
    budgets: Sequence[_Budget],
    rules: _Rules,
    first_samples: int,
    delta: float,
    resume: Sequence[Scores],
    on_save: Callable[[list[Scores]], object] | None,
) -> tuple[list[Scores], str, int, int]: ...
def audit(
    model: Model,
    scores: Sequence[Scores],
    layers: Sequence[int],
    ratios: Sequence[float],
    per_size: int,
    near: Sequence[float],
    per_near: int,
    plans: Sequence[tuple[str, Sequence[str]]],
    seed: int,
    samples: tuple[int, int],
    batch: int,
) -> str: ...
def refine(
    model: Model, scores: Scores, start: Plan, limits: Sequence[_Limit], rules: _Rules, settings: Mapping[str, Any]
) -> tuple[Plan, str]: ...
def measured_front(
    model: Model, scores: Scores, resource: str, rules: _Rules, settings: Mapping[str, Any], winners: int
) -> str: ...

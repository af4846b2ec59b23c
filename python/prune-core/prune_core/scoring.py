"""Measuring what removals do to a PyTorch model: scores of single branches, joint losses, plans that lose less together."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, TypedDict, Union

import torch
from torch import nn

from . import _core
from .errors import InvalidInputError
from .network import Branches, Run, branches as find_branches, evaluating, refuse_compiled
from .passes import Passes
from .removal import tensors
from .results import AdaptiveScores, Audit, MeasuredFront, Refined
from .search import Resources, limits_of, rules

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Measuring", "audit", "kl_loss", "measured_front", "output_loss", "refine", "run_model", "score", "score_adaptively"]

Loss = Callable[[torch.Tensor, torch.Tensor, Any], Any]
"""Takes the output, the original's output and the batch; answers one number per sample, less for what matters less."""

_ROWS = 256
"""Rows of an output that are compared at once, so that a large vocabulary in f32 does not fill the memory."""


class Measuring(TypedDict, total=False):
    """How a model is measured; keywords of every function here."""

    branches: Optional[Branches]
    """What can be removed: `branches(model)` unless given."""
    forward: Optional[Run]
    """``forward(model, batch)`` answers the tensor to compare, samples first. Unless given, a mapping is handed over as keywords
    and a tuple as arguments, and the output's ``logits``, ``sample`` or ``last_hidden_state`` is taken."""
    loss: Union[str, Loss, Mapping[str, Union[str, Loss]]]
    """``"output"``: mean squared change of the output (arXiv 2404.11098), the default. ``"kl"``: Kullback-Leibler divergence of
    the softmax over the last axis, the mean over all positions. Or a function, or several losses by name."""
    bins: Optional[Sequence[int]]
    """The group of each sample, such as its time step's; scores are also averaged per group."""
    memory: Optional[int]
    """Bytes for outputs that are kept (default: 5 % of the model's own, 64 MiB at least)."""
    prefix: bool
    """Whether what comes before the first removed branch is taken from an earlier pass (default: yes)."""
    sets_at_once: int
    """Removals between two savings (default: 32); the more, the more they share."""
    progress: bool
    """A progress bar, where tqdm is installed (default: no)."""


def score(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    path: Optional[Union[str, PathLike[str]]] = None,
    layers: Optional[Sequence[str]] = None,
    seed: Optional[int] = None,
    **measuring: Unpack[Measuring],
) -> Any:
    """What the removal of each branch, alone, does to the model's output: `Scores`, or a dictionary of them for several losses.

    ``batches`` are the calibration samples: a list of tensors, tuples or mappings, as the model takes them; they are moved to the
    model's device. The model runs in evaluation mode and without gradients, and is left as it was. A removed branch costs no
    work, and neither does what comes before it, which is shared between passes.

    ``path`` is a file that is written on the way (for several losses a folder, one file for each): an interrupted run goes on
    from there, and the result is the same. ``layers`` restricts the run to some branches.

    Raises InvalidInputError, ResumeError for a file of another run, and whatever ``forward`` and ``loss`` raise.
    """
    network = _Network(model, batches, measuring)
    files = _files(path, network.criteria)
    resume = _resume(files, network.branches.table)
    count = len(network.branches) if layers is None else len(layers)
    with network.installed(count * network.samples):
        found = _core.score(network.core(), network.run(seed, layers), resume, _saver(files))
    _save(files, found)
    return network.answer(found)


def score_adaptively(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    ratios: Sequence[float] = (0.5,),
    cost: str = "params",
    delta: float = 0.05,
    first_samples: int = 16,
    keep: Iterable[str] = (),
    remove: Iterable[str] = (),
    together: Iterable[Iterable[str]] = (),
    requires: Union[Mapping[str, str], Iterable[tuple[str, str]]] = (),
    path: Optional[Union[str, PathLike[str]]] = None,
    seed: Optional[int] = None,
    **measuring: Unpack[Measuring],
) -> AdaptiveScores:
    """As `score`, with as many samples of each branch as the plans for some ratios depend on.

    With a chance of ``1 - delta`` the plans are those of full scoring; the guide of the Rust crate says for which losses that
    holds. A branch gets the first samples, so put them in random order. The first loss decides.
    """
    network = _Network(model, batches, measuring)
    files = _files(path, network.criteria)
    resume = _resume(files, network.branches.table)
    budgets = [(cost, float(ratio), None) for ratio in ratios]
    with network.installed(len(network.branches) * network.samples):
        found, certificates, done, full = _core.score_adaptively(
            network.core(), network.run(seed, None), budgets, rules(keep, remove, together, requires), first_samples, delta, resume, _saver(files)
        )
    _save(files, found)
    return AdaptiveScores(network.answer(found), json.loads(certificates), done, full)


def audit(
    model: nn.Module,
    batches: Iterable[Any],
    scores: Union[_core.Scores, Mapping[str, _core.Scores]],
    *,
    ratios: Optional[Sequence[float]] = None,
    layers: Sequence[int] = (),
    sets: int = 20,
    near: Sequence[float] = (),
    near_sets: int = 5,
    plans: Optional[Mapping[str, _core.Plan]] = None,
    seed: int = 0,
    **measuring: Unpack[Measuring],
) -> Audit:
    """Whether the sum of single scores tells the joint loss: measured on random sets of branches, and on the plans given.

    ``sets`` random sets are drawn for each of ``ratios`` (shares of the parameters; a quarter, a half and three quarters of what
    can go, unless given) and of ``layers`` (numbers of branches). For
    each of ``near`` (shares, too) the plan and the next best sets are measured, ``near_sets`` in all: there the sum must tell.
    Give batches that are not behind the scores. A slope far from 1
    or a low rank correlation at your ratio says: use `refine`, or choose by what is measured.
    """
    given = [scores] if isinstance(scores, _core.Scores) else list(scores.values())
    network = _Network(model, batches, measuring)
    named = [(name, plan.removed) for name, plan in (plans or {}).items()]
    if ratios is None:
        table = network.branches.table
        most = table.cost_of(table.ids)[0] / table.total_params
        ratios = sorted({math.floor(25 * part * most) / 100 for part in (1, 2, 3)} - {0.0})
    total = (len(ratios) + len(layers)) * sets + len(near) * near_sets + len(named)
    with network.installed(total * network.samples):
        text = _core.audit(
            network.core(), given, list(layers), [float(ratio) for ratio in ratios], sets, [float(ratio) for ratio in near], near_sets,
            named, seed, (0, network.samples), network.batch
        )
    return Audit(text)


def refine(
    model: nn.Module,
    batches: Iterable[Any],
    scores: _core.Scores,
    plan: _core.Plan,
    *,
    method: str = "swaps",
    candidates: int = 32,
    width: int = 4,
    held_out: float = 0.5,
    first_samples: int = 16,
    max_forwards: int = 100_000,
    seed: int = 0,
    resources: Optional[Resources] = None,
    keep: Iterable[str] = (),
    remove: Iterable[str] = (),
    together: Iterable[Iterable[str]] = (),
    requires: Union[Mapping[str, str], Iterable[tuple[str, str]]] = (),
    **measuring: Unpack[Measuring],
) -> Refined:
    """A plan for the same limits that loses less together: measured on one part of the samples, chosen on the other.

    ``method`` is ``swaps``, ``beam`` (of ``width`` sets), ``evolution`` or ``interactions``; ``candidates`` sets are measured in each step, on
    ``first_samples`` first. Of the last ``held_out`` share of the samples one half decides between the best sets and the start, the
    other tells what they lose. At most ``max_forwards`` evaluations are done, samples times sets. Constraints and resources are those
    that the plan was made under.
    """
    network = _Network(model, batches, measuring)
    settings = network.search(method, candidates, width, held_out, first_samples, max_forwards, seed)
    limits = limits_of(plan)
    with network.installed(None):
        better, record = _core.refine(
            network.core(), scores, plan, limits, rules(keep, remove, together, requires, resources), settings
        )
    return Refined(better, record)


def measured_front(
    model: nn.Module,
    batches: Iterable[Any],
    scores: _core.Scores,
    *,
    resource: str = "params",
    winners: int = 0,
    method: str = "swaps",
    candidates: int = 32,
    width: int = 4,
    held_out: float = 0.5,
    first_samples: int = 16,
    max_forwards: int = 100_000,
    seed: int = 0,
    resources: Optional[Resources] = None,
    keep: Iterable[str] = (),
    remove: Iterable[str] = (),
    together: Iterable[Iterable[str]] = (),
    requires: Union[Mapping[str, str], Iterable[tuple[str, str]]] = (),
    **measuring: Unpack[Measuring],
) -> MeasuredFront:
    """The plan that loses least together at each budget: the sums of scores name the candidates, the model chooses.

    The plans of the exact front race on growing numbers of samples, in at most ``max_forwards`` evaluations (samples times sets).
    Around ``winners`` of them, spread over the budgets, a refinement by ``method`` goes on. The last ``held_out`` share of the
    samples chooses nothing and tells what the chosen plans lose. Other arguments are those of `refine`.
    """
    network = _Network(model, batches, measuring)
    settings = network.search(method, candidates, width, held_out, first_samples, max_forwards, seed)
    restricted = rules(keep, remove, together, requires, resources)
    with network.installed(None):
        return MeasuredFront(_core.measured_front(network.core(), scores, resource, restricted, settings, winners), scores)


def run_model(model: nn.Module, batch: Any) -> torch.Tensor:
    """Runs a model on a batch and takes the tensor that counts: ``logits``, ``sample``, ``last_hidden_state``, or the first."""
    if isinstance(batch, Mapping):
        cached = {"use_cache": False} if hasattr(getattr(model, "config", None), "use_cache") and "use_cache" not in batch else {}
        output = model(**batch, **cached)
    elif isinstance(batch, (tuple, list)):
        output = model(*batch)
    else:
        output = model(batch)
    if isinstance(output, torch.Tensor):
        return output
    for name in ("logits", "sample", "last_hidden_state"):
        found = getattr(output, name, None)
        if isinstance(found, torch.Tensor):
            return found
    first = next(tensors(output), None)
    if first is None:
        raise InvalidInputError(f"the model answers {type(output).__name__}, which holds no tensor; give forward=lambda model, batch: ...")
    return first


def output_loss(output: torch.Tensor, original: torch.Tensor, batch: Any = None) -> list[float]:
    """The mean squared change of each sample's output (arXiv 2404.11098), in f32."""
    return _by_rows(output, original, lambda a, b: (a - b).square().sum(dtype=torch.float64), per_row=False)


def kl_loss(output: torch.Tensor, original: torch.Tensor, batch: Any = None) -> list[float]:
    """The Kullback-Leibler divergence of each sample's distribution from the original's, the mean over positions, in nats."""

    def divergence(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        was = b.log_softmax(-1)
        return (was.exp() * (was - a.log_softmax(-1))).sum(dtype=torch.float64)

    return _by_rows(output, original, divergence, per_row=True)


def _by_rows(
    output: torch.Tensor, original: torch.Tensor, compare: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], per_row: bool
) -> list[float]:
    """One mean per sample; rows run along the last axis. One transfer from the device for all samples."""
    if output.shape != original.shape:
        raise InvalidInputError(f"the output's shape is {tuple(output.shape)} with a branch removed, {tuple(original.shape)} without; compare alike")
    width = output.shape[-1] if output.ndim > 1 else 1
    sums = []
    for mine, theirs in zip(output.reshape(output.shape[0], -1, width), original.reshape(output.shape[0], -1, width)):
        parts = [compare(mine[at : at + _ROWS].float(), theirs[at : at + _ROWS].float()) for at in range(0, mine.shape[0], _ROWS)]
        sums.append(torch.stack(parts).sum() / (mine.shape[0] if per_row else mine.numel()))
    return [float(x) for x in torch.stack(sums).tolist()]


_LOSSES: dict[str, tuple[str, Loss]] = {"output": ("output_loss", output_loss), "kl": ("kl_loss", kl_loss)}


class _Network:
    """A model with its samples and losses, as the search drives it."""

    def __init__(self, model: nn.Module, batches: Iterable[Any], measuring: Measuring) -> None:
        refuse_compiled(model)
        self.model = model
        # Not `or`: an empty one is somebody's mistake, and told as such.
        given = measuring.get("branches")
        self.branches = find_branches(model) if given is None else given
        self._forward = measuring.get("forward") or run_model
        self._single, losses = _named(measuring.get("loss", "output"))
        self._losses = list(losses.values())
        self.criteria = list(losses)
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._batches = [_moved(batch, device) for batch in batches]
        self._sizes = [_size(batch, at) for at, batch in enumerate(self._batches)]
        if not self._sizes:
            raise InvalidInputError("there are no batches; give at least one (a generator can be read once only)")
        self._starts = [sum(self._sizes[:at]) for at in range(len(self._sizes))]
        self.samples = sum(self._sizes)
        self.batch = max(self._sizes)
        own = sum(p.numel() * p.element_size() for p in model.parameters())
        memory = measuring.get("memory")
        memory = max(64 << 20, own // 20) if memory is None else memory
        self._passes = Passes(model, self.branches, memory // 2, measuring.get("prefix", True))
        self._room = memory // 2
        self._originals: dict[int, torch.Tensor] = {}
        self._known: dict[tuple[int, frozenset[str]], list[list[float]]] = {}
        self._progress = measuring.get("progress", False)
        self._bar: Any = None
        bins = measuring.get("bins")
        bins = [0] * self.samples if bins is None else [int(bin) for bin in bins]
        if len(bins) != self.samples:
            raise InvalidInputError(f"`bins` has {len(bins)} entries for {self.samples} samples; give one for each")
        self._bins = bins
        self._sets_at_once = max(1, measuring.get("sets_at_once", 32))

    def core(self) -> _core.Model:
        """The model as the search takes it; made for one run, since a circle through it would never be freed."""
        return _core.Model(self.branches.table, self.criteria, self._bins, self._sets_at_once, self._evaluate)

    def run(self, seed: Optional[int], layers: Optional[Sequence[str]]) -> dict[str, Any]:
        """How the samples are gone through, and what is recorded with the scores: the samples themselves, by their hash."""
        settings = {"made_by": "prune_core (Python)", "batches": _digest(self._batches)}
        return {"batch": self.batch, "seed": seed, "settings": json.dumps(settings), "layers": None if layers is None else list(layers)}

    def search(
        self, method: str, candidates: int, width: int, held_out: float, first_samples: int, max_forwards: int, seed: int
    ) -> dict[str, Any]:
        """The settings of a search over joint losses, the last samples held out."""
        split = self.samples - round(self.samples * held_out)
        if not 0 < split < self.samples:
            raise InvalidInputError(f"`held_out` is {held_out} of {self.samples} samples; some must be left on either side")
        return {
            "method": method, "candidates": candidates, "width": width, "samples": (0, split), "held_out": (split, self.samples),
            "first_samples": min(first_samples, split), "max_forwards": max_forwards, "batch": self.batch, "seed": seed,
        }

    def answer(self, scores: list[_core.Scores]) -> Any:
        return scores[0] if self._single else {one.criterion: one for one in scores}

    def installed(self, total: Optional[int]) -> _Installed:
        return _Installed(self, total)

    def _evaluate(self, sets: list[list[str]], start: int, stop: int) -> list[list[list[float]]]:
        """The losses of some samples with each set of branches removed. Whole batches run; what is not asked for yet is kept."""
        asked = [frozenset(ids) for ids in sets]
        rows: list[list[list[float]]] = [[] for _ in asked]
        for at, (first, size) in enumerate(zip(self._starts, self._sizes)):
            low, high = max(start, first), min(stop, first + size)
            if low >= high:
                continue
            new = [ids for ids in dict.fromkeys(asked) if (at, ids) not in self._known]
            original = self._original(at) if new else torch.empty(0)
            for ids, output in self._passes.run(at, new, lambda: self._forward(self.model, self._batches[at])):
                self._known[at, ids] = self._losses_of(output, original, at)
            for ids, found in zip(asked, rows):
                found.extend(self._known[at, ids][low - first : high - first])
            if len(self._known) > 200_000:
                self._known.clear()
        if self._bar is not None:
            self._bar.update(len(sets) * (stop - start))
        return rows

    def _original(self, at: int) -> torch.Tensor:
        if at in self._originals:
            return self._originals[at]
        ((_, output),) = self._passes.run(at, [frozenset()], lambda: self._forward(self.model, self._batches[at]))
        size = output.numel() * output.element_size()
        if size <= self._room:
            self._room -= size
            self._originals[at] = output
        return output

    def _losses_of(self, output: torch.Tensor, original: torch.Tensor, at: int) -> list[list[float]]:
        columns = [_numbers(loss(output, original, self._batches[at]), self._sizes[at], name) for name, loss in zip(self.criteria, self._losses)]
        return [list(row) for row in zip(*columns)]


class _Installed:
    """While it lasts, the model's branches can be switched off, nothing is recorded for gradients, and progress is shown."""

    def __init__(self, network: _Network, total: Optional[int]) -> None:
        self._network = network
        self._total = total
        self._contexts: list[Any] = []

    def __enter__(self) -> None:
        network = self._network
        self._contexts = [torch.no_grad(), evaluating(network.model), network._passes.installed()]
        for context in self._contexts:
            context.__enter__()
        if network._progress:
            network._bar = _bar(self._total)

    def __exit__(self, *raised: Any) -> None:
        if self._network._bar is not None:
            self._network._bar.close()
            self._network._bar = None
        for context in reversed(self._contexts):
            context.__exit__(*raised)


def _bar(total: Optional[int]) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError:
        return None
    return tqdm(total=total, unit="eval", smoothing=0.1)


def _named(loss: Union[str, Loss, Mapping[str, Union[str, Loss]]]) -> tuple[bool, dict[str, Loss]]:
    """Whether one loss was given, and the losses by the names of their criteria."""

    def one(given: Union[str, Loss]) -> tuple[str, Loss]:
        if callable(given):
            return getattr(given, "__name__", type(given).__name__).strip("<>"), given
        if given in _LOSSES:
            return _LOSSES[given]
        raise InvalidInputError(f"`loss` is {given!r}; expected {', '.join(_LOSSES)}, a function, or a mapping of these")

    if isinstance(loss, Mapping):
        if not loss:
            raise InvalidInputError("`loss` names no loss; give at least one")
        return False, {name: one(given)[1] for name, given in loss.items()}
    name, function = one(loss)
    return True, {name: function}


def _numbers(losses: Any, size: int, name: str) -> list[float]:
    flat = losses.detach().double().reshape(-1).tolist() if isinstance(losses, torch.Tensor) else [float(x) for x in losses]
    if len(flat) != size:
        raise InvalidInputError(f"the loss `{name}` answers {len(flat)} numbers for {size} samples; answer one for each")
    return flat


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _moved(inner, device) for key, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(inner, device) for inner in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(inner, device) for inner in value)
    return value


def _size(batch: Any, at: int) -> int:
    first = next((tensor for tensor in tensors(batch) if tensor.ndim > 0), None)
    if first is None or first.shape[0] == 0:
        raise InvalidInputError(f"batch {at} holds no tensor with samples along its first axis")
    return int(first.shape[0])


def _digest(batches: Iterable[Any]) -> str:
    """SHA-256 over the tensors of all batches, so that scores of other samples are not mixed in."""
    sha = hashlib.sha256()
    for tensor in (tensor for batch in batches for tensor in tensors(batch)):
        sha.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return sha.hexdigest()


def _files(path: Optional[Union[str, PathLike[str]]], criteria: Sequence[str]) -> list[Path]:
    if path is None:
        return []
    path = Path(path)
    if path.suffix == ".json":
        if len(criteria) > 1:
            raise InvalidInputError(f"`path` is the file {path}, but there are {len(criteria)} losses; give a folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        return [path]
    path.mkdir(parents=True, exist_ok=True)
    return [path / f"{criterion}.json" for criterion in criteria]


def _resume(files: Sequence[Path], table: _core.LayerTable) -> list[_core.Scores]:
    return [_core.Scores.read(file, table) for file in files] if files and all(file.exists() for file in files) else []


def _saver(files: Sequence[Path]) -> Optional[Callable[[list[_core.Scores]], None]]:
    return (lambda scores: _save(files, scores)) if files else None


def _save(files: Sequence[Path], scores: Sequence[_core.Scores]) -> None:
    for file, one in zip(files, scores):
        one.write(file)

"""The branches of a PyTorch model: what there is to remove, and what each costs. First step of the flow."""

from __future__ import annotations

import math
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional, Union

import torch
from torch import nn

from . import _core, _display
from .errors import InvalidInputError, OtherModelError, UnknownLayerError
from .patterns import Form, Found, Pattern, blocks, matching, ready
from .removal import detect, names_of, replaced
from .search import Resource

__all__ = ["Branch", "Branches", "branches", "latency"]

Run = Callable[[nn.Module, Any], Any]
"""Runs a model on one batch."""


@dataclass(frozen=True)
class Branch:
    """One thing that can be removed.

    ``params`` go with it, ``macs`` are those of one forward pass over the example (0 where none was given), ``kv_bytes`` what
    it keeps of each token of a sequence in a key-value cache (0 for all but the attention of decoders).
    """

    id: str
    kind: str
    stage: str
    block: str
    params: int
    macs: int = 0
    kv_bytes: int = 0
    owns: tuple[str, ...] = ()
    form: Optional[Form] = None
    skip: bool = False


@dataclass(frozen=True)
class Shell:
    """What goes only with the last of its members: a block, or a Transformer2D, becomes the identity."""

    id: str
    members: tuple[str, ...]
    params: int
    macs: int
    form: Form


class Branches(Sequence[Branch]):
    """The branches of one model in the order of the forward pass: a sequence, and the table that scores and plans refer to."""

    def __init__(self, items: Sequence[Branch], shells: Sequence[Shell], table: _core.LayerTable) -> None:
        self._items = tuple(items)
        self.shells = tuple(shells)
        self.table = table
        self._by_id = {branch.id: branch for branch in items}

    @property
    def ids(self) -> list[str]:
        """Names of the branches."""
        return [branch.id for branch in self._items]

    @property
    def resources(self) -> dict[str, Resource]:
        """Costs beside parameters and MACs, for `solve`: ``kv_bytes`` per token of a sequence, where a model is a decoder."""
        kept = {branch.id: branch.kv_bytes for branch in self._items if branch.kv_bytes}
        return {"kv_bytes": Resource(kept)} if kept else {}

    def by_block(self) -> list[list[str]]:
        """The branches of each block: ``solve(..., together=branches.by_block())`` removes whole blocks."""
        found: dict[str, list[str]] = {}
        for branch in self._items:
            found.setdefault(branch.block, []).append(branch.id)
        return list(found.values())

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, str):
            if at not in self._by_id:
                raise UnknownLayerError(f"unknown layer `{at}`; there are {', '.join(self.ids[:3])}, ...")
            return self._by_id[at]
        return self._items[at]

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Branch]:
        return iter(self._items)

    def __repr__(self) -> str:
        blocks = len({branch.block for branch in self._items})
        kinds = ", ".join(sorted({branch.kind for branch in self._items}))
        return f"Branches({len(self)} in {blocks} blocks: {kinds})"

    def _repr_html_(self) -> str:
        rows = ((b.id, b.kind, _display.count(b.params), _display.count(b.macs), _display.count(b.kv_bytes)) for b in self)
        return f"<p>{repr(self)}</p>" + _display.rows(("layer", "kind", "parameters", "MACs", "KV bytes a token"), rows, len(self))


def branches(
    model: nn.Module,
    patterns: Optional[Union[Sequence[Union[str, Pattern]], str]] = None,
    *,
    granularity: str = "branch",
    example: Any = None,
    forward: Optional[Run] = None,
    name: Optional[str] = None,
    fingerprint: Optional[str] = None,
    table: Optional[_core.LayerTable] = None,
) -> Branches:
    """The residual branches of a model, with their parameters, MACs and bytes of key-value cache.

    Without ``patterns`` the ready rules are used: decoders of transformers (Llama, Qwen, Mistral, Gemma, GPT-2, ...), ViT, CLIP
    and SigLIP, timm's ViT, and of diffusers UNet2DConditionModel, Flux, SD3, PixArt, Sana. ``granularity="block"`` takes whole
    blocks instead of their attention and feed-forward.

    ``patterns`` are globs over ``model.named_modules()``, such as ``["layers.*.attn", "layers.*.mlp"]`` (one ``*`` is one
    component, ``**`` any number; the beginning of the name may be left out), or `Pattern`s. A module that one names must add
    its output to a residual stream; `Pattern(..., skip=True)` is for blocks that hold their own.

    ``example`` is one batch of one sample, on which MACs are counted: matrix products and convolutions, those of attention
    included, of one forward pass; ``forward(model, example)`` runs it (see `score`). Give it as well where the branches of your
    patterns answer more than one tensor.

    ``fingerprint`` is a hash of the weights that you keep; files made for another one are refused. ``table`` takes order, name,
    fingerprint and MACs from a table, such as that of the command's scores, so that its files and this model's fit.

    Raises UnknownLayerError, InvalidInputError, and OtherModelError where ``table`` is of another model.
    """
    refuse_compiled(model)
    found = _found(model, patterns, granularity)
    found = _ordered(model, found)
    calls = _Calls(model, found)
    shells = _shells(model, found, whole=granularity == "branch" and patterns is None)
    macs: dict[str, int] = {}
    if example is not None:
        from .scoring import run_model

        macs = _count(model, example, forward or run_model)
        with replaced(calls.listeners()), torch.no_grad(), evaluating(model):
            (forward or run_model)(model, example)
    users = _users(model)

    def costs(names: Sequence[str]) -> tuple[int, int]:
        inside = tuple(name + "." for name in names)
        mine = {id(p): p.numel() for name in names for p in model.get_submodule(name).parameters() if users[id(p)] <= _inside(users[id(p)], inside)}
        return sum(mine.values()), sum(macs.get(name, 0) for name in names)

    items = []
    for branch in found:
        names = branch.owns if branch.form is not None and branch.form.slots == ("shortcut",) else (branch.id, *branch.owns)
        params, work = costs(names)
        module = model.get_submodule(branch.id)
        items.append(
            Branch(
                branch.id, branch.kind, _stage(branch.block), branch.block, params, work, _kv_bytes(model, module, branch),
                branch.owns, branch.form or calls.forms.get(branch.id), branch.skip,
            )
        )
    dead = next((branch for branch in items if branch.params == 0 and branch.macs == 0), None)
    if dead is not None:
        raise InvalidInputError(f"`{dead.id}` has no parameters, and no MACs were counted; give an example, or leave it out")
    by_id = {branch.id: branch for branch in items}
    whole = []
    for outer, members, form in shells:
        params, work = costs((outer,))
        params -= sum(by_id[member].params for member in members)
        work -= sum(by_id[member].macs for member in members)
        if params > 0 or work > 0:
            whole.append(Shell(outer, tuple(members), max(params, 0), max(work, 0), form))
    total = sum({id(p): p.numel() for p in model.parameters()}.values())
    if table is not None:
        return _adopt(items, whole, total, table)
    made = _core.LayerTable(
        [branch.id for branch in items],
        [branch.params for branch in items],
        [branch.macs for branch in items],
        kinds=[branch.kind for branch in items],
        stages=[branch.stage for branch in items],
        model=name or type(model).__name__,
        fingerprint=fingerprint,
        total_params=total,
        total_macs=macs.get("", 0),
        shared_costs=[(shell.id, list(shell.members), shell.params, shell.macs) for shell in whole],
    )
    return Branches(items, whole, made)


def latency(
    model: nn.Module,
    branches: Branches,
    example: Any,
    *,
    forward: Optional[Run] = None,
    repeats: int = 10,
) -> Resource:
    """Nanoseconds that each branch takes in a forward pass over the example: the median of some passes, on this device.

    The time between entering and leaving the branch's modules; ``total`` is that of the whole pass. On a GPU every branch is
    waited for, so the sum lies above that of a pass that overlaps. Use it in ``solve(..., resources={"latency_ns": ...})``.
    """
    from .scoring import run_model

    run = forward or run_model
    device = next(model.parameters()).device
    spent: dict[str, list[int]] = {}

    def now() -> int:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter_ns()

    def timed(name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = now()
            output = inner(*args, **kwargs)
            spent.setdefault(name, []).append(now() - start)
            return output

        return call

    members = {name for branch in branches for name in (branch.id, *branch.owns)}
    modules = {model.get_submodule(name): timed(name, model.get_submodule(name).forward) for name in sorted(members)}
    with torch.no_grad(), evaluating(model):
        run(model, example)
        with replaced(modules):
            for _ in range(max(1, repeats)):
                run(model, example)
        wholes = []
        for _ in range(max(1, repeats)):
            start = now()
            run(model, example)
            wholes.append(now() - start)

    def median(branch: Branch) -> int:
        names = branch.owns if branch.form is not None and branch.form.slots == ("shortcut",) else (branch.id, *branch.owns)
        return round(sum(statistics.median(spent[name]) for name in names if name in spent))

    costs = {branch.id: median(branch) for branch in branches}
    return Resource(costs, total=max(round(statistics.median(wholes)), sum(costs.values())))


def refuse_compiled(model: nn.Module) -> None:
    """A compiled model runs what it has compiled, whatever becomes of its modules."""
    if hasattr(model, "_orig_mod"):
        raise InvalidInputError("the model is compiled, so its branches cannot be switched off; give model._orig_mod, and compile what is left")


class evaluating:
    """The model in evaluation mode, every module as it was afterwards."""

    def __init__(self, model: nn.Module) -> None:
        self._training = [module for module in model.modules() if module.training]
        self._model = model

    def __enter__(self) -> None:
        self._model.eval()

    def __exit__(self, *_: object) -> None:
        for module in self._training:
            module.training = True


def _found(model: nn.Module, patterns: Optional[Union[Sequence[Union[str, Pattern]], str]], granularity: str) -> list[Found]:
    if granularity not in ("branch", "block"):
        raise InvalidInputError(f"`granularity` is `{granularity}`; expected branch or block")
    if patterns is not None:
        return matching(model, [patterns] if isinstance(patterns, str) else list(patterns))
    found = ready(model) if granularity == "branch" else blocks(model)
    if not found:
        raise InvalidInputError(
            f"{type(model).__name__} has no block that a ready rule knows; name its branches, for example "
            'branches(model, ["layers.*.attn", "layers.*.mlp"]), as they stand in model.named_modules()'
        )
    # A vision or text tower inside another block would be counted twice.
    ids = {branch.id for branch in found}
    return [branch for branch in found if not any(branch.id.startswith(other + ".") for other in ids)]


def _ordered(model: nn.Module, found: list[Found]) -> list[Found]:
    """The order of the forward pass: that of registration, apart from U-Nets, which register ends before the middle."""
    if type(model).__name__ != "UNet2DConditionModel":
        return found
    sections = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}

    def key(at_and_branch: tuple[int, Found]) -> tuple[int, int, int, int, int]:
        at, branch = at_and_branch
        parts = branch.id.split(".")
        section = sections.get(parts[0], 3)
        stage = 0 if section == 1 else int(parts[1])
        kind, number = re.search(r"\b(resnets|attentions)\.(\d+)", branch.id).groups()  # type: ignore[union-attr]
        # The middle begins with a ResNet of its own: resnets.0, attentions.0, resnets.1.
        return section, stage, int(number), 0 if kind == "resnets" else 1, at

    return [branch for _, branch in sorted(enumerate(found), key=key)]


def _shells(model: nn.Module, found: list[Found], *, whole: bool) -> list[tuple[str, list[str], Form]]:
    """What becomes the identity with its last branch: Transformer2Ds of U-Nets, else the blocks."""
    from .patterns import RULES, THROUGH

    if not whole:
        return []
    inside: dict[str, list[str]] = {}
    forms: dict[str, Form] = {}
    for branch in found:
        if branch.skip or branch.id == branch.block:
            continue
        outer = branch.block.rpartition(".transformer_blocks.")[0]
        transformer = outer and type(model.get_submodule(outer)).__name__ == "Transformer2DModel"
        id = outer if transformer else branch.block
        inside.setdefault(id, []).append(branch.id)
        rule = next((rule for rule in RULES if rule.fits(model.get_submodule(branch.block))), None)
        forms[id] = Form(("pass:",), single=False) if transformer else rule.through if rule else THROUGH
    return [(id, members, forms[id]) for id, members in inside.items()]


class _Calls:
    """Listens to one pass for the forms of branches that have none yet."""

    def __init__(self, model: nn.Module, found: list[Found]) -> None:
        self.forms: dict[str, Form] = {}
        self._unknown = {branch.id: model.get_submodule(branch.id) for branch in found if branch.form is None}

    def listeners(self) -> dict[nn.Module, Callable[..., Any]]:
        return {module: self._listen(id, module.forward) for id, module in self._unknown.items()}

    def _listen(self, id: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        names = names_of(inner)

        def call(*args: Any, **kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            self.forms[id] = detect(names, args, kwargs, output, id)
            return output

        return call


def _users(model: nn.Module) -> dict[int, set[str]]:
    """The names under which each parameter is used."""
    users: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        users.setdefault(id(parameter), set()).add(name)
    return users


def _inside(names: set[str], prefixes: tuple[str, ...]) -> set[str]:
    return {name for name in names if name.startswith(prefixes)}


def _count(model: nn.Module, example: Any, forward: Run) -> dict[str, int]:
    """Multiply-accumulates of one pass by module name; under the empty name those of the whole model."""
    from torch.utils.flop_counter import FlopCounterMode

    # Shapes `[batch, heads, tokens, width]`; torch's own count refuses fewer heads of keys than of queries.
    def attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        return int(2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]))

    names = ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention")
    kernels = [getattr(torch.ops.aten, f"_scaled_dot_product_{name}", None) for name in names]
    counter = FlopCounterMode(display=False, custom_mapping={kernel: attention for kernel in kernels if kernel is not None})
    with torch.no_grad(), evaluating(model), counter:
        forward(model, example)
    root = type(model).__name__
    counts = counter.get_flop_counts()
    return {
        "" if name in ("Global", root) else name[len(root) + 1 :]: sum(work.values()) // 2
        for name, work in counts.items()
        if name == "Global" or name.startswith(root)
    }


def _kv_bytes(model: nn.Module, module: nn.Module, branch: Found) -> int:
    """Bytes of keys and values of one token, by the widths of the projections, or by the configuration."""
    config = getattr(model, "config", None)
    decoder = getattr(config, "num_hidden_layers", None) is not None and hasattr(config, "use_cache")
    if not decoder:
        return 0
    holders = [module] if branch.kind == "self_attention" else [m for n, m in module.named_modules() if n.endswith("attn")]
    return sum(_kv_width(config, holder) * next((p.element_size() for p in holder.parameters()), 0) for holder in holders)


def _kv_width(config: Any, attention: nn.Module) -> int:
    """Numbers that one token's keys and values take."""
    widths = [getattr(getattr(attention, name, None), "out_features", None) for name in ("k_proj", "v_proj")]
    if all(isinstance(width, int) for width in widths):
        return sum(width for width in widths if width is not None)
    queries = getattr(config, "num_attention_heads", None) or 1
    heads = getattr(config, "num_key_value_heads", None) or queries
    head = getattr(config, "head_dim", None) or getattr(config, "hidden_size", 0) // queries
    return 2 * int(heads) * int(head)


def _stage(block: str) -> str:
    """The part of the network that a block sits in: `down_blocks.1`, `mid_block`, or the list that holds it."""
    unet = re.match(r"(down_blocks\.\d+|up_blocks\.\d+|mid_block)(\.|$)", block)
    return unet.group(1) if unet else re.sub(r"\.?\d+$", "", block)


def _adopt(items: list[Branch], shells: list[Shell], total: int, table: _core.LayerTable) -> Branches:
    """The branches in the order and under the name of a table that was made elsewhere, if it is of this model."""
    mine = {branch.id: branch for branch in items}
    for id, params, macs in zip(table.ids, table.params, table.macs):
        branch = mine.pop(id, None)
        if branch is None or branch.params != params:
            found = "is not in this model" if branch is None else f"has {branch.params} parameters in this model, {params} in the table"
            raise OtherModelError(f"`{id}` {found}; take the table of this model's scores")
        items[items.index(branch)] = replace(branch, macs=macs)
    if mine or total != table.total_params:
        what = f"`{next(iter(mine))}` is not in the table" if mine else f"{total} parameters, not {table.total_params}"
        raise OtherModelError(f"the table is of another model or granularity: {what}; take that of this model's scores")
    by_id = {branch.id: branch for branch in items}
    shared = {id: (members, params, macs) for id, members, params, macs in table.shared_costs}
    kept = [replace(shell, members=tuple(shared[shell.id][0])) for shell in shells if shell.id in shared]
    return Branches([by_id[id] for id in table.ids], kept, table)

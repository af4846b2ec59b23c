"""Removing for real: modules go, the configuration says so, and what is saved loads again."""

from __future__ import annotations

import copy
import functools
import json
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Optional, TypeVar, Union

import torch
from torch import nn

from . import _core
from .errors import FormatError, InvalidInputError, OtherModelError, PruneCoreWarning, UnknownLayerError
from .network import Branches, branches as find_branches
from .patterns import ZERO, Form
from .removal import Removed, names_of

__all__ = ["apply", "load"]

M = TypeVar("M", bound=nn.Module)

KEYS = ("prune_core", "_prune_core")
"""The entry of a configuration that names what is gone; diffusers warns of entries that it does not know unless they are private."""

# Lists of blocks, by the end of their name, and the entries of configurations that count them.
_COUNTS = {
    "layers": ("num_hidden_layers", "n_layer"),
    "layer": ("num_hidden_layers",),
    "h": ("n_layer", "num_hidden_layers"),
    "transformer_blocks": ("num_layers",),
    "single_transformer_blocks": ("num_single_layers",),
}


def apply(model: M, plan: Union[_core.Plan, Iterable[str]], branches: Optional[Branches] = None) -> M:
    """Takes the branches of a plan out of a model, in place: they hold no parameters and take no time any more.

    A branch is replaced by a module without parameters, its own normalization by the identity. A block without any branch left is
    deleted from its list where the configuration counts the list (``num_hidden_layers``, ``num_layers``, ...): names are then
    renumbered, and the model saves and loads like any other. Where branches go but blocks stay, the configuration names them
    under ``prune_core``: save with ``save_pretrained``, load by `load`.

    ``plan`` may be a list of names instead. ``branches`` are those that the plan was made over, if patterns of your own found
    them. Generation with a key-value cache works: what is left of the attention is numbered anew.

    Raises UnknownLayerError, and OtherModelError for a plan whose costs are not this model's.
    """
    if _recorded(model) is not None:
        raise InvalidInputError("branches were removed from this model before; load the whole model and apply one plan for all")
    known = find_branches(model) if branches is None else branches
    removed = list(plan.removed) if isinstance(plan, _core.Plan) else list(plan)
    if branches is None and any(id not in known.table for id in removed):
        # Perhaps a plan over whole blocks.
        try:
            whole = find_branches(model, granularity="block")
        except InvalidInputError:
            whole = known
        known = whole if all(id in whole.table for id in removed) else known
    missing = next((id for id in removed if id not in known.table), None)
    if missing is not None:
        raise UnknownLayerError(f"the model has no branch `{missing}`; give the branches that the plan was made over")
    if isinstance(plan, _core.Plan):
        params = dict(zip(plan.table.ids, plan.table.params))
        other = next((id for id in removed if known[id].params != params[id]), None)
        if other is not None:
            raise OtherModelError(f"`{other}` has {known[other].params} parameters here, {params[other]} in the plan; make the plan for this model")
    _own_configuration(model)
    todo = _Removal(model, known, removed)
    deleted, config = todo.deletable()
    record = todo.cut(deleted)
    if config is not None:
        _configure(model, config)
    if record:
        _configure(model, {_key(model): {"version": 1, "removed": record}})
    _number_attention(model)
    return model


def load(model_class: Any, path: Union[str, PathLike[str]], **arguments: Any) -> Any:
    """A model that was saved after `apply`: ``load(AutoModelForCausalLM or LlamaForCausalLM, "folder")``.

    ``arguments`` go to ``from_pretrained``. Removed branches are never allocated. A model whose blocks went as a whole needs no
    `load`; it takes those as well.
    """
    folder = Path(path)
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as problem:
        raise FormatError(f"{folder / 'config.json'} cannot be read: {problem}; give the folder that save_pretrained wrote") from None
    key = next((key for key in KEYS if key in config), None)
    if key is None:
        return model_class.from_pretrained(path, **arguments)
    record = config[key]
    if record.get("version") != 1:
        raise FormatError(f"{folder / 'config.json'}: `{key}.version` is {record.get('version')}; this release reads 1")
    real = _resolve(model_class, folder, config)

    class Pruned(real):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            real.__init__(self, *args, **kwargs)
            _cut(self, record["removed"])
            _number_attention(self)

    # diffusers reads the entries of a configuration off the constructor's signature.
    functools.update_wrapper(Pruned.__init__, real.__init__)

    Pruned.__name__, Pruned.__qualname__, Pruned.__module__ = real.__name__, real.__qualname__, real.__module__
    model = Pruned.from_pretrained(path, **arguments)
    model.__class__ = real
    if _recorded(model) is None:
        _configure(model, {key: record})
    return model


class _Removal:
    """What goes from a model: branches, blocks that are left empty, blocks of which the whole list can be shortened."""

    def __init__(self, model: nn.Module, branches: Branches, removed: Sequence[str]) -> None:
        self._model = model
        gone = set(removed)
        members: dict[str, set[str]] = {}
        for branch in branches:
            members.setdefault(branch.block, set()).add(branch.id)
        self._branches = [branch for branch in branches if branch.id in gone]
        self._shells = [shell for shell in branches.shells if gone.issuperset(shell.members)]
        # A block whose branches cover it: all that is left of it is its residual stream.
        covered = {shell.id for shell in branches.shells}
        full = {branch.id for branch in branches if branch.skip}
        self._empty = [block for block, ids in members.items() if ids <= gone and (block in covered or block in full or _bare(model, block, branches))]

    def deletable(self) -> tuple[list[str], Optional[dict[str, Any]]]:
        """The empty blocks whose lists the configuration counts, and the configuration without them, if it makes such a model."""
        lists: dict[str, list[int]] = {}
        for block in self._empty:
            parent, _, number = block.rpartition(".")
            if number.isdigit() and isinstance(self._model.get_submodule(parent), nn.ModuleList):
                lists.setdefault(parent, []).append(int(number))
        config = getattr(self._model, "config", None)
        if config is None or not lists:
            return [], None
        changes: dict[str, Any] = {}
        for parent, numbers in lists.items():
            changed = _shortened(config, parent, len(_children(self._model, parent)), set(numbers))
            if changed is None:
                return [], None
            changes.update(changed)
        blocks = [f"{parent}.{number}" for parent, numbers in lists.items() for number in numbers]
        return (blocks, changes) if _makes(self._model, changes, lists) else ([], None)

    def cut(self, deleted: Sequence[str]) -> list[dict[str, Any]]:
        """Does it; the record of what was replaced, under the names after the blocks were deleted."""
        new = _renumbered(self._model, deleted)
        record: list[dict[str, Any]] = []
        gone = tuple(block + "." for block in deleted)

        def replaced(id: str, form: Form, owns: Sequence[str] = ()) -> None:
            if not (id + ".").startswith(gone or ("\0",)):
                names = list(names_of(self._model.get_submodule(id).forward))
                record.append({"id": new(id), "slots": list(form.slots), "single": form.single, "arguments": names, "owns": [new(name) for name in owns]})

        shells = tuple(shell.id + "." for shell in self._shells)
        for shell in self._shells:
            replaced(shell.id, shell.form)
        for branch in self._branches:
            if not branch.id.startswith(shells or ("\0",)):
                inside = branch.id + "."
                replaced(branch.id, branch.form or ZERO, [name for name in branch.owns if not name.startswith(inside)])
        for parent in sorted({block.rpartition(".")[0] for block in deleted}):
            layers = _children(self._model, parent)
            numbers = {int(block.rpartition(".")[2]) for block in deleted if block.rpartition(".")[0] == parent}
            _put(self._model, parent, nn.ModuleList(layer for at, layer in enumerate(layers) if at not in numbers))
        _cut(self._model, record)
        return record


def _cut(model: nn.Module, record: Iterable[Mapping[str, Any]]) -> None:
    """Replaces the modules that a record names."""
    for one in record:
        try:
            module = model.get_submodule(one["id"])
        except AttributeError:
            raise FormatError(f"the configuration names `{one['id']}` as removed, which {type(model).__name__} does not have") from None
        form = Form(tuple(one["slots"]), one["single"])
        shortcut = getattr(module, "conv_shortcut", None)
        _put(model, one["id"], Removed(form, one["arguments"], shortcut))
        for name in one["owns"]:
            _put(model, name, nn.Identity())


def _children(model: nn.Module, name: str) -> list[nn.Module]:
    return list(model.get_submodule(name).children())


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    holder = model.get_submodule(parent)
    if isinstance(holder, nn.ModuleList):
        holder[int(child)] = module
    else:
        setattr(holder, child, module)


def _bare(model: nn.Module, block: str, branches: Branches) -> bool:
    """Whether nothing of a block holds parameters beside its branches."""
    inside = {block} if not block else {id(p) for p in model.get_submodule(block).parameters()}
    own = [name for branch in branches if branch.block == block for name in (branch.id, *branch.owns)]
    return bool(block) and inside == {id(p) for name in own for p in model.get_submodule(name).parameters()}


def _shortened(config: Any, parent: str, length: int, gone: set[int]) -> Optional[dict[str, Any]]:
    """The entries of a configuration that count a list, without some of its blocks; None where none does."""
    end = parent.rpartition(".")[2]
    counts = [name for name in _COUNTS.get(end, ()) if _entry(config, name) == length]
    if not counts:
        return None
    changes: dict[str, Any] = {counts[0]: length - len(gone)}
    for name in ("layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type"):
        kinds = _entry(config, name)
        if isinstance(kinds, (list, tuple)) and len(kinds) == length:
            changes[name] = [kind for at, kind in enumerate(kinds) if at not in gone]
    # Positions of special blocks.
    left = [at for at in range(length) if at not in gone]
    for name in ("dual_attention_layers", "mlp_only_layers"):
        places = _entry(config, name)
        if isinstance(places, (list, tuple)):
            changes[name] = type(places)(left.index(at) for at in places if at in left)
    return changes


def _entry(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)


def _makes(model: nn.Module, changes: Mapping[str, Any], lists: Mapping[str, Sequence[int]]) -> bool:
    """Whether the changed configuration makes the model that is left: parameters by name and shape, modules by class and settings."""
    config: Any = getattr(model, "config", {})
    if _entry(config, "scale_attn_by_inverse_layer_idx"):
        return False
    deleted = [f"{parent}.{number}" for parent, numbers in lists.items() for number in numbers]
    new = _renumbered(model, deleted)
    gone = tuple(block + "." for block in deleted)
    left = {new(name): tuple(value.shape) for name, value in model.state_dict().items() if not name.startswith(gone)}
    try:
        with torch.device("meta"):
            if hasattr(type(model), "from_config"):
                made = type(model).from_config({**dict(config), **changes})  # type: ignore[attr-defined]
            else:
                shortened = copy.deepcopy(config)
                for name, value in changes.items():
                    setattr(shortened, name, value)
                made = type(model)(shortened)
    except Exception:
        # Whatever a foreign constructor dislikes: then the blocks stay as empty places.
        return False
    kept = {new(name): _traits(module) for name, module in model.named_modules() if not (name + ".").startswith(gone)}
    return left == {name: tuple(value.shape) for name, value in made.state_dict().items()} and all(
        kept.get(name) == _traits(module) for name, module in made.named_modules() if not isinstance(module, nn.ModuleList)
    )


def _traits(module: nn.Module) -> tuple[type, dict[str, Any]]:
    """What a module was told when it was made, apart from its place: a sliding window, whether positions are rotated, ..."""
    plain = {name: value for name, value in vars(module).items() if not name.startswith("_") and isinstance(value, (bool, int, float, str))}
    return type(module), {name: value for name, value in plain.items() if name not in ("training", "layer_idx", "name_or_path", "num_layers")}


def _renumbered(model: nn.Module, deleted: Sequence[str]) -> Any:
    """The name of a module after some blocks were deleted."""
    moves: dict[str, dict[str, str]] = {}
    for parent in {block.rpartition(".")[0] for block in deleted}:
        layers = _children(model, parent)
        left = [str(at) for at in range(len(layers)) if f"{parent}.{at}" not in deleted]
        moves[parent] = {before: str(at) for at, before in enumerate(left)}

    def name(before: str) -> str:
        for parent, numbers in moves.items():
            if before.startswith(parent + "."):
                number, dot, rest = before[len(parent) + 1 :].partition(".")
                return f"{parent}.{numbers.get(number, number)}{dot}{rest}"
        return before

    return name


def _own_configuration(model: nn.Module) -> None:
    """A configuration of the model's own: transformers shares one between all models made of it."""
    config = getattr(model, "config", None)
    if config is None or hasattr(model, "register_to_config"):
        return
    copies: dict[int, Any] = {}
    copy.deepcopy(config, copies)
    for module in model.modules():
        if id(vars(module).get("config")) in copies:
            module.config = copies[id(vars(module)["config"])]


def _configure(model: nn.Module, changes: Mapping[str, Any]) -> None:
    config = getattr(model, "config", None)
    if hasattr(model, "register_to_config"):
        model.register_to_config(**changes)  # type: ignore[operator]
    elif config is not None:
        for name, value in changes.items():
            setattr(config, name, value)


def _recorded(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    return None if config is None else next((found for key in KEYS if (found := _entry(config, key)) is not None), None)


def _key(model: nn.Module) -> str:
    return KEYS[1] if hasattr(model, "register_to_config") else KEYS[0]


def _number_attention(model: nn.Module) -> None:
    """Numbers what is left of a decoder's attention anew: a cache has an entry for each, and counts tokens by the first one.

    Entries have the kinds of ``layer_types``, so each attention takes the next entry of its own kind.
    """
    config = getattr(model, "config", None)
    numbered = [(name, module) for name, module in model.named_modules() if isinstance(getattr(module, "layer_idx", None), int)]
    for name, module in numbered:
        if name.rpartition(".")[2].isdigit():
            module.layer_idx = int(name.rpartition(".")[2])
    named = [(name, module) for name, module in numbered if re.search("attn|attention", name.rpartition(".")[2])]
    left = [module for _, module in named if any(True for _ in module.parameters())]
    if not left or len({name.rpartition(".")[2] for name, _ in named}) > 1 or _entry(config, "scale_attn_by_inverse_layer_idx"):
        return
    kinds = _entry(config, "layer_types")
    if not isinstance(kinds, (list, tuple)):
        kinds = ["attention"] * max(len(left), int(_entry(config, "num_hidden_layers") or 0))
    # The list of blocks may have been shortened since the modules were numbered; the kinds are told by the blocks.
    places = {kind: iter([at for at, other in enumerate(kinds) if other == kind]) for kind in set(kinds)}
    blocks = {id(module): int(number) for name, module in named for number in re.findall(r"\.(\d+)\.", name)[:1]}
    if any(blocks.get(id(module), len(kinds)) >= len(kinds) for module in left):
        return
    for module in left:
        module.layer_idx = next(places[kinds[blocks[id(module)]]])
    if all(module.layer_idx != 0 for module in left):
        warnings.warn("no attention of the first layer's kind is left, by which caches count tokens; generate with use_cache=False", PruneCoreWarning, stacklevel=3)


def _resolve(model_class: Any, folder: Path, config: Mapping[str, Any]) -> Any:
    """The class behind one of transformers' automatic classes."""
    if isinstance(model_class, type) and issubclass(model_class, nn.Module):
        return model_class
    mapping = getattr(model_class, "_model_mapping", None)
    if mapping is None:
        raise InvalidInputError(f"{model_class!r} is no class of models; give that of the saved one, such as LlamaForCausalLM")
    from transformers import AutoConfig

    return mapping[type(AutoConfig.from_pretrained(folder))]

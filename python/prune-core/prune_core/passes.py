"""Passes of a model without some branches, that share what they have in common.

A removal changes nothing before its block. So every block keeps its last answer with what was removed up to it; a pass in which
the same is removed so far takes that answer and does not run the block. Sets in the order in which they differ latest share
most: a walk over the tree of their beginnings, with one answer kept per block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Optional

import torch
from torch import nn

from .errors import UnknownLayerError
from .network import Branch, Branches, Shell
from .patterns import ZERO, Form
from .removal import answer, bound, detect, names_of, replaced, tensors

__all__ = ["Passes"]

Removal = frozenset[str]


class _Changed(Exception):
    """A kept answer was changed in place after the block had given it."""


class Passes:
    """Runs a model without some of its branches."""

    def __init__(self, model: nn.Module, branches: Branches, memory: int, prefix: bool) -> None:
        self._model = model
        self._branches = {branch.id: branch for branch in branches}
        self._shells = branches.shells
        self._memory = memory
        self._prefix = prefix
        self._gone: Removal = frozenset()
        self._gone_shells: frozenset[str] = frozenset()
        self._forms: dict[str, Form] = {}
        # In the order in which the first pass enters them.
        self._order: dict[str, int] = {}
        self._members: dict[str, list[str]] = {}
        for branch in branches:
            self._members.setdefault(branch.block, []).append(branch.id)
        self._nodes: dict[tuple[int, Removal], int] = {}
        self._keys: dict[str, int] = {}
        self._kept: dict[str, tuple[int, Any, tuple[int, ...]]] = {}
        self._entered: set[str] = set()
        self.blocks_run = 0
        """Blocks that were run, of all passes."""

    def installed(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts, the model's branches answer to `run`."""
        forwards: dict[nn.Module, Callable[..., Any]] = {}

        def wrap(name: str, around: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
            try:
                module = self._model.get_submodule(name)
            except AttributeError:
                raise UnknownLayerError(f"the model has no module `{name}`; take the branches of this model") from None
            forwards[module] = around(name, forwards.get(module, module.forward))

        for branch in self._branches.values():
            wrap(branch.id, self._branch)
            for name in branch.owns:
                # What lies inside a branch is not run either way.
                if not name.startswith(branch.id + "."):
                    wrap(name, lambda name, inner, id=branch.id: self._owned(id, inner))  # type: ignore[misc]
        for shell in self._shells:
            wrap(shell.id, lambda name, inner, shell=shell: self._shell(shell, inner))  # type: ignore[misc]
        for block in self._members:
            wrap(block, self._block)
        return replaced(forwards)

    def run(self, batch: int, sets: Sequence[Removal], forward: Callable[[], torch.Tensor]) -> Iterator[tuple[Removal, torch.Tensor]]:
        """The output of ``forward`` with each set removed, in an order in which they share most."""
        ordered = sorted(sets, key=self._signature)
        for removed in ordered:
            yield removed, self._one(batch, removed, forward)

    def _one(self, batch: int, removed: Removal, forward: Callable[[], torch.Tensor]) -> torch.Tensor:
        self._gone = removed
        self._gone_shells = frozenset(shell.id for shell in self._shells if removed.issuperset(shell.members))
        self._keys = self._prefixes(batch, removed)
        self._entered = set()
        try:
            return forward()
        except _Changed:
            self._prefix = False
            self._kept.clear()
            return self._one(batch, removed, forward)
        finally:
            self._gone, self._gone_shells = frozenset(), frozenset()

    def _signature(self, removed: Removal) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(id for id in self._members[block] if id in removed) for block in self._blocks())

    def _blocks(self) -> Sequence[str]:
        return list(self._order) or list(self._members)

    def _prefixes(self, batch: int, removed: Removal) -> dict[str, int]:
        """A number for each block that stands for the batch and all that is removed up to and in it."""
        if not self._prefix or not self._order:
            return {}
        node = self._nodes.setdefault((-1 - batch, frozenset()), len(self._nodes))
        keys = {}
        for block in self._order:
            gone = removed.intersection(self._members[block])
            node = self._nodes.setdefault((node, gone), len(self._nodes))
            keys[block] = node
        return keys

    def _block(self, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name in self._entered:
                # Run twice in one pass: what comes before it is not the same both times.
                self._prefix = False
                self._kept.clear()
            self._entered.add(name)
            self._order.setdefault(name, len(self._order))
            key = self._keys.get(name) if self._prefix else None
            if key is not None:
                kept = self._kept.get(name)
                if kept is not None and kept[0] == key:
                    if kept[2] != _versions(kept[1]):
                        raise _Changed
                    return kept[1]
            self.blocks_run += 1
            output = inner(*args, **kwargs)
            if key is not None:
                self._keep(name, key, output)
            return output

        return call

    def _keep(self, name: str, key: int, output: Any) -> None:
        self._kept.pop(name, None)
        used = sum(_bytes(kept[1]) for kept in self._kept.values())
        if used + _bytes(output) <= self._memory:
            self._kept[name] = (key, output, _versions(output))

    def _branch(self, id: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        branch = self._branches[id]
        names = names_of(inner)
        module = self._model.get_submodule(id)

        def call(*args: Any, **kwargs: Any) -> Any:
            form = branch.form or self._forms.get(id)
            if id not in self._gone:
                output = inner(*args, **kwargs)
                if form is None:
                    self._forms[id] = detect(names, args, kwargs, output, id)
                return output
            if form is None:
                output = inner(*args, **kwargs)
                form = self._forms[id] = detect(names, args, kwargs, output, id)
            return answer(form, bound(names, args, kwargs), getattr(module, "conv_shortcut", None))

        return call

    def _owned(self, id: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return next(tensors((args, kwargs))) if id in self._gone else inner(*args, **kwargs)

        return call

    def _shell(self, shell: Shell, inner: Callable[..., Any]) -> Callable[..., Any]:
        names = names_of(inner)

        def call(*args: Any, **kwargs: Any) -> Any:
            return answer(shell.form, bound(names, args, kwargs)) if shell.id in self._gone_shells else inner(*args, **kwargs)

        return call


def _versions(output: Any) -> tuple[int, ...]:
    """How often each tensor was changed in place; nothing is known of tensors of inference mode."""
    return tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors(output))


def _bytes(output: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(output))

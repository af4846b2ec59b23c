"""Taking branches out of a network for a while: their `forward` is replaced, so that their work is not done either."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Optional

import torch
from torch import nn

from .errors import InvalidInputError
from .patterns import ZERO, Form

__all__ = ["Removed", "answer", "bound", "replaced", "tensors"]

Forward = Callable[..., Any]


def tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors(inner)
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from tensors(inner)


def names_of(forward: Forward) -> tuple[str, ...]:
    """The names by which the positional arguments of a function can be given."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(name for name, one in inspect.signature(forward).parameters.items() if one.kind in kinds)


def bound(names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name."""
    return {**dict(zip(names, args)), **kwargs}


def answer(form: Form, given: Mapping[str, Any], shortcut: Optional[nn.Module] = None) -> Any:
    """What a removed module with these arguments answers."""

    def slot(what: str) -> Any:
        action, _, name = what.partition(":")
        if action == "none":
            return None
        value = given.get(name) if name else None
        if not isinstance(value, torch.Tensor):
            # A name that the caller does not use, or no name: the first tensor.
            value = None if name.startswith("encoder") else next(tensors(tuple(given.values())), None)
        if action == "shortcut" and value is not None:
            return value if shortcut is None else shortcut(value)
        return value if action == "pass" or value is None else torch.zeros_like(value)

    outputs = tuple(slot(what) for what in form.slots)
    return outputs[0] if form.single else outputs


def detect(names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any, id: str) -> Form:
    """The form of a branch by one call: each tensor of its output is taken for zeros like an argument of its shape."""
    given = bound(names, args, kwargs)
    leaves = output if isinstance(output, (tuple, list)) else (output,)
    slots = []
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            slots.append("none")
            continue
        like = [name for name, value in given.items() if isinstance(value, torch.Tensor) and value.shape == leaf.shape]
        if like:
            slots.append(f"zero:{like[0]}")
        elif not slots:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items() if isinstance(value, torch.Tensor))
            raise InvalidInputError(
                f"`{id}` answers a tensor of shape {tuple(leaf.shape)}, none of its inputs has that shape ({shapes}), so it is "
                "no residual branch; choose another module, or give a Pattern with a form"
            )
        else:
            slots.append("none")
    return Form(tuple(slots), single=not isinstance(output, (tuple, list)))


class Removed(nn.Module):
    """What stands in for a branch that is gone."""

    def __init__(self, form: Form = ZERO, names: Sequence[str] = (), conv_shortcut: Optional[nn.Module] = None) -> None:
        super().__init__()
        self.form = form
        self.names = tuple(names)
        self.conv_shortcut = conv_shortcut

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return answer(self.form, bound(self.names, args, kwargs), self.conv_shortcut)

    def extra_repr(self) -> str:
        return ", ".join(self.form.slots)


@contextlib.contextmanager
def replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Other `forward`s for some modules, put back at the end whatever happens."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    try:
        for module, forward in forwards.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in before.items():
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own

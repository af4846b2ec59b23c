"""Which modules are residual branches: ready rules for the blocks of well-known networks, and patterns of one's own.

A branch is what a block adds to its residual stream. Without it the block passes on what it was given, so removing it is
exact: the module's output becomes zero, its work and its parameters (its own normalization included) go.
"""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Optional

from .errors import InvalidInputError, UnknownLayerError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Form", "Pattern"]


@dataclass(frozen=True)
class Form:
    """What a removed module answers, made from what it was given.

    One slot per output: ``zero:NAME`` is zeros like the argument of that name, ``pass:NAME`` the argument itself, ``shortcut``
    what the module's ``conv_shortcut`` makes of the first argument, ``none`` is None. ``zero:`` without a name means the first
    tensor. ``single`` tells a bare output from a tuple of one.
    """

    slots: tuple[str, ...] = ("zero:",)
    single: bool = True


ZERO = Form()
"""A tensor: zeros like the first one given."""
ATTENTION = Form(("zero:hidden_states", "none"), single=False)
"""Attention of transformers: its output and its weights."""
JOINT = Form(("zero:hidden_states", "zero:encoder_hidden_states"), single=False)
"""Attention of diffusers over image and text together."""
THROUGH = Form(("pass:",))
"""A block that passes on the first tensor that it was given."""
THROUGH_JOINT = Form(("pass:encoder_hidden_states", "pass:hidden_states"), single=False)
"""A block of diffusers over image and text together."""
SHORTCUT = Form(("shortcut",))
"""A ResNet block without its main path."""


@dataclass(frozen=True)
class Pattern:
    """Modules by the names of `named_modules()`: a glob per component, from the end of the name, `**` for any number.

    ``"layers.*.mlp"`` finds ``model.layers.0.mlp``. The modules of ``owns``, named from the same parent, go with the branch.
    ``skip`` is for modules that hold their own residual, such as whole blocks: without them the input is passed on.
    """

    glob: str
    kind: str = "branch"
    owns: tuple[str, ...] = ()
    skip: bool = False
    form: Optional[Form] = None


@dataclass(frozen=True)
class Found:
    """A branch as found by its name, before its costs are known."""

    id: str
    kind: str
    block: str
    owns: tuple[str, ...] = ()
    form: Optional[Form] = None
    skip: bool = False


@dataclass(frozen=True)
class Rule:
    """The branches of one kind of block: child, kind, owned children, form."""

    classes: str
    children: tuple[tuple[str, str, tuple[str, ...], Form], ...]
    through: Form = THROUGH
    needs: tuple[str, ...] = ()

    def fits(self, block: "nn.Module") -> bool:
        return re.fullmatch(self.classes, type(block).__name__) is not None and all(
            getattr(block, name, None) is not None for name in self.needs
        )


_ATTENTION, _CROSS, _FEED = "self_attention", "cross_attention", "feed_forward"

# Blocks of diffusers by their classes; others by the names of their children. The first rule that fits counts.
RULES = (
    Rule(
        "BasicTransformerBlock",
        (
            ("attn1", _ATTENTION, ("norm1",), ZERO),
            ("attn2", _CROSS, ("norm2",), ZERO),
            ("ff", _FEED, ("norm3",), ZERO),
        ),
        needs=("norm3",),
    ),
    # PixArt: one table of shifts and scales for all branches, and a norm2 that belongs to the feed-forward.
    Rule(
        "BasicTransformerBlock|SanaTransformerBlock",
        (("attn1", _ATTENTION, (), ZERO), ("attn2", _CROSS, (), ZERO), ("ff", _FEED, (), ZERO)),
    ),
    Rule(
        "FluxTransformerBlock|JointTransformerBlock",
        (
            ("attn", _ATTENTION, (), JOINT),
            ("attn2", _ATTENTION, (), ZERO),
            ("ff", _FEED, (), ZERO),
            ("ff_context", "context_feed_forward", (), ZERO),
        ),
        THROUGH_JOINT,
    ),
    # Gemma: a norm before and one after each branch.
    Rule(
        ".*",
        (
            ("self_attn", _ATTENTION, ("input_layernorm", "post_attention_layernorm"), ATTENTION),
            ("mlp", _FEED, ("pre_feedforward_layernorm", "post_feedforward_layernorm"), ZERO),
        ),
        needs=("self_attn", "mlp", "input_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    ),
    # Llama, Qwen, Mistral, Phi and their kin.
    Rule(
        ".*",
        (
            ("self_attn", _ATTENTION, ("input_layernorm",), ATTENTION),
            ("mlp", _FEED, ("post_attention_layernorm",), ZERO),
        ),
        needs=("self_attn", "mlp", "input_layernorm", "post_attention_layernorm"),
    ),
    # OLMo 2 and later: norms behind the branches alone.
    Rule(
        ".*",
        (
            ("self_attn", _ATTENTION, ("post_attention_layernorm",), ATTENTION),
            ("mlp", _FEED, ("post_feedforward_layernorm",), ZERO),
        ),
        needs=("self_attn", "mlp", "post_attention_layernorm", "post_feedforward_layernorm"),
    ),
    # CLIP and SigLIP.
    Rule(
        ".*",
        (("self_attn", _ATTENTION, ("layer_norm1",), ATTENTION), ("mlp", _FEED, ("layer_norm2",), ZERO)),
        needs=("self_attn", "mlp", "layer_norm1", "layer_norm2"),
    ),
    # ViT of transformers.
    Rule(
        ".*",
        (("attention", _ATTENTION, ("layernorm_before",), ATTENTION), ("mlp", _FEED, ("layernorm_after",), ZERO)),
        needs=("attention", "mlp", "layernorm_before", "layernorm_after"),
    ),
    # ViT of timm.
    Rule(
        ".*",
        (("attn", _ATTENTION, ("norm1", "ls1"), ZERO), ("mlp", _FEED, ("norm2", "ls2"), ZERO)),
        needs=("attn", "mlp", "norm1", "norm2"),
    ),
    # GPT-2.
    Rule(
        ".*",
        (("attn", _ATTENTION, ("ln_1",), ATTENTION), ("mlp", _FEED, ("ln_2",), ZERO)),
        needs=("attn", "mlp", "ln_1", "ln_2"),
    ),
)

WHOLE = {"FluxSingleTransformerBlock": ("single_block", THROUGH_JOINT)}
"""Blocks whose branches share one projection, so that they go as a whole."""


def ready(model: "nn.Module") -> list[Found]:
    """The branches of every block that a ready rule knows, in the order of `named_modules()`."""
    found: list[Found] = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind in WHOLE:
            found.append(Found(name, WHOLE[kind][0], name, form=WHOLE[kind][1], skip=True))
        elif kind == "ResnetBlock2D":
            owns = tuple(f"{name}.{part}" for part in ("norm1", "conv1", "time_emb_proj", "norm2", "conv2"))
            found.append(Found(name, "resnet", name, owns, SHORTCUT))
        elif rule := next((rule for rule in RULES if rule.fits(module)), None):
            found.extend(_branches(rule, name, module))
    return found


def _branches(rule: Rule, name: str, block: "nn.Module") -> Iterable[Found]:
    for child, kind, owned, form in rule.children:
        if getattr(block, child, None) is not None:
            owns = tuple(f"{name}.{other}" for other in owned if getattr(block, other, None) is not None)
            yield Found(f"{name}.{child}" if name else child, kind, name, owns, form)


def blocks(model: "nn.Module") -> list[Found]:
    """Whole blocks instead of their branches."""
    found: dict[str, Found] = {}
    for branch in ready(model):
        if branch.block not in found:
            block = model.get_submodule(branch.block)
            rule = next((rule for rule in RULES if rule.fits(block)), None)
            whole = branch if branch.id == branch.block else Found(branch.block, "block", branch.block, form=rule.through if rule else THROUGH)
            found[branch.block] = whole if whole.form == SHORTCUT else Found(**{**vars(whole), "skip": True})
    return list(found.values())


def matching(model: "nn.Module", patterns: Sequence[str | Pattern] | Sequence[Pattern]) -> list[Found]:
    """The modules that patterns name, in the order of `named_modules()`."""
    names = [name for name, _ in model.named_modules() if name]
    found: dict[str, Found] = {}
    for given in patterns:
        pattern = Pattern(given) if isinstance(given, str) else given
        matched = [name for name in names if matches(name, pattern.glob)]
        if not matched:
            near = difflib.get_close_matches(pattern.glob, names, n=1, cutoff=0.4)
            hint = f"did you mean `{near[0]}`?" if near else "see model.named_modules()"
            raise UnknownLayerError(f"no module is called `{pattern.glob}`; {hint}")
        for name in matched:
            parent = name.rpartition(".")[0]
            owns = tuple(f"{parent}.{other}" if parent else other for other in pattern.owns)
            form = pattern.form or (THROUGH if pattern.skip else None)
            found.setdefault(name, Found(name, pattern.kind, _block(name, pattern.skip), owns, form, pattern.skip))
    nested = next(((a, b) for a in found for b in found if b.startswith(a + ".")), None)
    if nested:
        raise InvalidInputError(f"`{nested[1]}` lies inside `{nested[0]}`, so both cannot be layers; narrow the patterns")
    order = {name: at for at, name in enumerate(names)}
    return sorted(found.values(), key=lambda branch: order[branch.id])


def _block(name: str, skip: bool) -> str:
    """The block around a branch: its name up to the last number, or the branch itself."""
    parts = name.split(".")
    last = max((at for at, part in enumerate(parts) if part.isdigit()), default=-1)
    return name if skip or last < 0 else ".".join(parts[: last + 1])


def matches(name: str, glob: str) -> bool:
    """Whether a name ends in components that fit those of a glob."""
    parts, wanted = name.split("."), glob.split(".")

    def fit(at: int, want: int) -> bool:
        if want < 0:
            return True
        if wanted[want] == "**":
            return want == 0 or any(fit(start, want - 1) for start in range(-1, at + 1) if start >= 0 or want == 0)
        return at >= 0 and fnmatch.fnmatchcase(parts[at], wanted[want]) and fit(at - 1, want - 1)

    return fit(len(parts) - 1, len(wanted) - 1)

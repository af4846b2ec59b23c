"""Plans in the words of other programs. These remove whole blocks, so a plan must as well."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Union

from . import _core
from .errors import InvalidInputError

__all__ = ["layer_indices", "llama_cpp", "mergekit"]


def layer_indices(plan: _core.Plan) -> list[int]:
    """The numbers of the blocks that go, as OptiPFair's ``layer_indices`` takes them.

    Raises InvalidInputError for a plan that takes a part of a block: make it over whole blocks, by ``granularity="block"`` or
    ``solve(..., together=branches.by_block())``.
    """
    blocks: dict[int, list[str]] = {}
    for id in plan.table.ids:
        blocks.setdefault(_number(id), []).append(id)
    gone = set(plan.removed)
    part = next((ids for ids in blocks.values() if gone.intersection(ids) and not gone.issuperset(ids)), None)
    if part is not None:
        out = next(id for id in part if id in gone)
        stays = next(id for id in part if id not in gone)
        raise InvalidInputError(
            f"`{out}` goes and `{stays}` stays, but other programs remove whole blocks; make the plan with "
            'together=branches.by_block(), or over branches(model, granularity="block")'
        )
    return sorted(number for number, ids in blocks.items() if gone.issuperset(ids))


def llama_cpp(plan: _core.Plan) -> str:
    """The argument of llama.cpp: ``llama-quantize --prune-layers 3,7,11 model.gguf pruned.gguf Q8_0``."""
    return "--prune-layers " + ",".join(map(str, layer_indices(plan)))


def mergekit(plan: _core.Plan, model: str, dtype: str = "bfloat16") -> str:
    """A recipe for mergekit (``mergekit-yaml recipe.yml out``): the slices of ``model`` that stay."""
    gone = set(layer_indices(plan))
    count = max(map(_number, plan.table.ids)) + 1
    left = [number for number in range(count) if number not in gone]
    if not left:
        raise InvalidInputError("the plan removes every block; nothing is left to merge")
    starts = [number for number in left if number - 1 in gone or number == 0]
    slices = [(start, next((end for end in range(start, count) if end in gone), count)) for start in starts]
    lines = ["slices:"]
    for start, end in slices:
        lines += ["  - sources:", f"      - model: {model}", f"        layer_range: [{start}, {end}]"]
    return "\n".join([*lines, "merge_method: passthrough", f"dtype: {dtype}", ""])


def _number(id: str) -> int:
    """The number of the block that a branch sits in."""
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.|$)", id)
    if len(numbers) != 1:
        raise InvalidInputError(f"`{id}` does not sit in one numbered list of blocks, as in a language model; other programs number these")
    return int(numbers[0])

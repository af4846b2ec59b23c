"""How values look in a notebook."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Optional

from . import _core

_MOST = 40
"""Rows of a table that are shown."""


def count(number: float) -> str:
    """A large number with its unit: 6.74 G."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.4g}"


def rows(head: Sequence[str], body: Iterable[Sequence[object]], total: int) -> str:
    """An HTML table of at most some rows."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    shown = []
    for at, row in enumerate(body):
        if at == _MOST:
            shown.append(f"<tr><td colspan={len(head)}>... {total - _MOST} more</td></tr>")
            break
        shown.append("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>")
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{''.join(shown)}</tbody></table>"


def table(value: _core.LayerTable) -> str:
    body = zip(value.ids, value.kinds, map(count, value.params), map(count, value.macs))
    head = f"<p><b>{escape(value.model)}</b>: {len(value)} layers, {count(value.total_params)} parameters in all</p>"
    return head + rows(("layer", "kind", "parameters", "MACs"), body, len(value))


def scores(value: _core.Scores) -> str:
    errors = value.standard_errors
    ranked = sorted(value.values.items(), key=lambda item: item[1])
    body = ((id, f"{score:.4g}", f"{errors[id]:.2g}" if id in errors else "") for id, score in ranked)
    return f"<p>{escape(repr(value))}</p>" + rows(("layer", value.criterion, "standard error"), body, len(ranked))


def plan(value: _core.Plan) -> str:
    proof = "proven optimal" if value.optimal else "" if value.lower_bound is None else f"no set is below {value.lower_bound:.4g}"
    predicted = "" if value.predicted is None else f", predicted loss {value.predicted:.4g} {proof}"
    saved = f"{100 * value.params_ratio:.1f} % of the parameters"
    if value.macs_ratio:
        saved += f", {100 * value.macs_ratio:.1f} % of the MACs"
    limits = "".join(f"<li>{escape(limit_text(*limit))}</li>" for limit in value.limits)
    gone = set(value.removed)
    table = value.table
    body = ((id, kind, count(params), "goes" if id in gone else "") for id, kind, params in zip(table.ids, table.kinds, table.params))
    head = f"<p><b>{len(gone)} of {len(table)} layers go</b>: {saved}{escape(predicted)}</p><ul>{limits}</ul>"
    return head + rows(("layer", "kind", "parameters", ""), body, len(table))


def limit_text(name: str, at_least: Optional[int], at_most: Optional[int], removed: int) -> str:
    """One limit and what was removed, in words."""
    asked = [f"at least {count(at_least)}" if at_least is not None else "", f"at most {count(at_most)}" if at_most is not None else ""]
    return f"{name}: {count(removed)} go ({', '.join(filter(None, asked))} asked for)"


def front(value: _core.Front) -> str:
    return f"<p>{escape(repr(value))}</p>" + curve([(value.resource, [(float(x), y) for x, y in value.points])])


_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#8250df")


def curve(lines: Sequence[tuple[str, Sequence[tuple[float, float]]]], width: int = 480, height: int = 240) -> str:
    """A chart of losses over what goes: one polyline for each named list of points."""
    points = [point for _, line in lines for point in line]
    if not points:
        return "<p>no points</p>"
    left, bottom = 60, 30
    low_x, high_x = min(x for x, _ in points), max(x for x, _ in points)
    low_y, high_y = min(y for _, y in points), max(y for _, y in points)

    def place(x: float, y: float) -> str:
        across = (x - low_x) / ((high_x - low_x) or 1.0)
        up = (y - low_y) / ((high_y - low_y) or 1.0)
        return f"{left + across * (width - left - 10):.1f},{height - bottom - up * (height - bottom - 20):.1f}"

    drawn = []
    for at, (name, line) in enumerate(lines):
        colour = _COLOURS[at % len(_COLOURS)]
        kept = line[:: max(1, len(line) // 400)]
        drawn.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(place(x, y) for x, y in kept)}"/>')
        drawn.append(f'<text x="{left + 8}" y="{14 + 13 * at}" fill="{colour}" font-size="11">{escape(name)}</text>')
    marks = [
        f'<text x="{left}" y="{height - 8}" font-size="11">{count(low_x)}</text>',
        f'<text x="{width - 10}" y="{height - 8}" font-size="11" text-anchor="end">{count(high_x)} gone</text>',
        f'<text x="{left - 6}" y="{height - bottom}" font-size="11" text-anchor="end">{low_y:.3g}</text>',
        f'<text x="{left - 6}" y="20" font-size="11" text-anchor="end">{high_y:.3g}</text>',
    ]
    return f'<svg width="{width}" height="{height}" font-family="sans-serif">{"".join(drawn + marks)}</svg>'

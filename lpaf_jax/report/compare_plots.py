"""The picture of a comparison: every recipe by size and by what it is worth."""

import math
from collections.abc import Mapping
from typing import Any

from lpaf_jax.report.compare_facts import Found, Group, groups, measure, shown
from lpaf_jax.report.labels import Room, Spot
from lpaf_jax.report.looks import looks
from lpaf_jax.report.measures import Measure
from lpaf_jax.report.scales import amounts, drawn
from lpaf_jax.report.svg import MUTED, svg

Lines = Mapping[str, list[Group]]
# Of one size, beside one another: bars that lie on each other cannot be told apart. All of one
# size stay within these many points of the axis, so that none seems to be of another size.
_APART, _WITHIN = 0.8, 4.0
# Points that the axis shows at least.
_LEAST = 20.0


def figure_against_size(found: Found, narrow: bool = False) -> str:
    """Means over the seeds, with their intervals, by the numbers stored; a line for each recipe."""
    by = measure(found)
    lines: dict[str, list[Group]] = {name: [] for name in found["recipes"]}
    for of in groups(found).values():
        for group in of:
            if math.isfinite(group.score):
                lines[group.recipe].append(group)
    lines = {name: line for name, line in lines.items() if line}
    dense = [row["dense"] for row in found["rows"] if row["dense"] is not None]
    columns = _columns(lines, narrow)
    height = (280 if narrow else 340) + 20 * -(-len(lines) // columns)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        curves = _draw_lines(axes, lines, by)
        level = drawn(by, sum(dense) / len(dense)) if dense else None
        if level is not None:
            axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        axes.margins(x=0.08, y=0.1)
        low, high = axes.get_xlim()
        if high - low < _LEAST:  # else what only stands aside would seem to be of another size
            middle = (low + high) / 2
            axes.set_xlim(middle - _LEAST / 2, middle + _LEAST / 2)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:g} %")
        space = "\n" if narrow else " "
        axes.set_xlabel(
            f"weights stored for the compressible matrices,{space}share of the dense model"
        )
        titled = f"Test {by.titled}" if found["task"] else f"{by.titled[0].upper()}{by.titled[1:]}"
        axes.set_title(titled)
        amounts(axes, by)
        figure.legend(loc="outside lower center", ncols=columns, handlelength=2.8)
        if level is not None:
            text = f"before compression: {by.show(sum(dense) / len(dense))}"
            _label_level(axes, text, level, curves)

    spoken = "; ".join(
        f"{name} " + ", ".join(f"{shown(by, g.score)} at {100 * g.params:g} %" for g in line)
        for name, line in lines.items()
    )
    called = f"{by.name[0].upper()}{by.name[1:]} against size: {spoken}"
    return svg(
        "compare-narrow" if narrow else "compare", called, 340 if narrow else 600, height, draw
    )


def _columns(lines: Lines, narrow: bool) -> int:
    """How many names of the key stand side by side, with some 35 points of line before each."""
    longest = max(map(len, lines), default=0)
    return max(1, min(2 if narrow else 4, int((330 if narrow else 590) / (5.5 * longest + 45))))


def _draw_lines(axes: Any, lines: Lines, by: Measure) -> list[tuple[list[float], list[float]]]:
    """Draw every recipe; returns the curves and bars, as what labels must not cross."""
    curves = []
    of_size: dict[float, list[str]] = {}
    for name, line in lines.items():
        for group in line:
            of_size.setdefault(group.params, []).append(name)
    for name, look in looks(lines).items():
        xs, ys = [], []
        for group in lines[name]:
            names = of_size[group.params]
            step = min(_APART, _WITHIN / len(names)) if group.interval is not None else 0
            shift = step * (names.index(name) - (len(names) - 1) / 2)
            xs.append(100 * (group.mean("encoder_params_ratio") or 0) + shift)
            ys.append(drawn(by, group.score))
            if group.interval is not None:
                ends = [drawn(by, end) for end in group.interval]
                axes.plot([xs[-1]] * 2, ends, color=look.color, linewidth=3, alpha=0.3)
                curves.append(([xs[-1]] * 2, ends))
        axes.plot(xs, ys, label=name, markersize=6, linewidth=1.3, **look._asdict())
        curves.append((xs, ys))
    return curves


def _label_level(
    axes: Any, text: str, level: float, curves: list[tuple[list[float], list[float]]]
) -> None:
    """Say what the dotted line is, at one of its ends or between, over or under it."""
    room = Room(axes)
    for xs, ys in curves:
        room.line(xs, ys)
    low, high = axes.get_xlim()
    ends = ((0.01, "left"), (0.99, "right"), (0.5, "center"), (0.33, "center"), (0.67, "center"))
    sides = ((3, "bottom"), (-3, "top"))
    room.label(
        text,
        [
            Spot(low + share * (high - low), level, 0, dy, ha, va)
            for share, ha in ends
            for dy, va in sides
        ],
    )

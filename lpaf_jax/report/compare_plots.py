"""The picture of a comparison: every recipe by size and by what it is worth."""

import math
from typing import Any

from lpaf_jax.report.compare_facts import Found, Group, groups, measure, shown
from lpaf_jax.report.measures import Measure, amount
from lpaf_jax.report.svg import BLUE, GREEN, GREY, MUTED, ORANGE, svg

# The rest of Okabe and Ito's palette, but for its yellow, which is lost on white.
_COLOURS = (BLUE, ORANGE, GREEN, "#cc79a7", "#e69f00", "#56b4e9", "#23272b", GREY)
_MARKERS = "osD^vP*X"


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
    height = (280 if narrow else 340) + 20 * -(-len(lines) // (2 if narrow else 3))

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        if dense:
            level = _drawn(by, sum(dense) / len(dense))
            axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
            axes.annotate(
                f"before compression: {by.show(sum(dense) / len(dense))}",
                (0.01, level),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                color=MUTED,
                fontsize=9.5,
            )
        for index, (name, line) in enumerate(lines.items()):
            colour = _COLOURS[index % len(_COLOURS)]
            # Of one size, beside one another: bars that lie on each other cannot be told apart.
            shift = (
                0
                if line[0].interval is None
                else (index - (len(lines) - 1) / 2) * (1.1 if narrow else 0.8)
            )
            xs = [100 * (group.mean("encoder_params_ratio") or 0) + shift for group in line]
            ys = [_drawn(by, group.score) for group in line]
            for x, group in zip(xs, line, strict=True):
                if group.interval is not None:
                    ends = [_drawn(by, end) for end in group.interval]
                    axes.plot([x, x], ends, color=colour, linewidth=3, alpha=0.3)
            marker = _MARKERS[index % len(_MARKERS)]
            axes.plot(xs, ys, marker=marker, color=colour, label=name, markersize=6, linewidth=1.3)
        axes.margins(x=0.08, y=0.1)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0f} %")
        space = "\n" if narrow else " "
        axes.set_xlabel(
            f"numbers stored for the compressible matrices,{space}share of the dense model"
        )
        titled = f"Test {by.titled}" if found["task"] else f"{by.titled[0].upper()}{by.titled[1:]}"
        axes.set_title(titled)
        if by.less:
            low, high = axes.get_ylim()
            steps = (1, 2, 5) if high - low < 3 else (1,)
            ticks = [k + math.log10(s) for k in range(int(low) - 1, int(high) + 1) for s in steps]
            ticks = [place for place in ticks if low <= place <= high]
            if len(ticks) > 1:
                axes.set_yticks(ticks)
            axes.yaxis.set_major_formatter(lambda place, _: amount(10**place))
        figure.legend(
            loc="outside lower center",
            ncols=2 if narrow else 3,
            frameon=False,
            fontsize=9.5,
            labelcolor="linecolor",
        )

    spoken = "; ".join(
        f"{name} " + ", ".join(f"{shown(by, g.score)} at {100 * g.params:g} %" for g in line)
        for name, line in lines.items()
    )
    called = f"{by.name[0].upper()}{by.name[1:]} against size: {spoken}"
    return svg(
        "compare-narrow" if narrow else "compare", called, 340 if narrow else 600, height, draw
    )


def _drawn(by: Measure, value: float) -> float:
    """Where a value stands: shares by their percents, amounts by their logarithms."""
    if by.less:
        return math.log10(value)
    return value if by.correlation else 100 * value

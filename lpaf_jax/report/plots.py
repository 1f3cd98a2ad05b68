"""The figures of a run, each a function from plain data to one inline <svg>."""

import math
from collections.abc import Sequence
from itertools import pairwise
from textwrap import wrap
from typing import Any

import numpy as np

from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics
from lpaf_jax.report.logs import Line, Log, Phase
from lpaf_jax.report.matrix_plots import apart
from lpaf_jax.report.measures import Measure, primary
from lpaf_jax.report.svg import BLUE, GREEN, GREY, INK, MUTED, ORANGE, svg

# Of the stages there mostly are: colour and marker. Others take those in the middle in turn.
_LOOKS = {"dense": (GREY, "s"), "pruned": (GREEN, "D"), "factorized": (ORANGE, "v")}
_LOOKS["final"] = (BLUE, "o")


def _look(stage: str) -> tuple[str, str]:
    return _LOOKS.get(stage, _LOOKS.get(stage.partition("-")[0], (GREEN, "^")))


def score_against_size(metrics: Metrics, narrow: bool = False) -> str:
    """Every stage by the numbers its compressible matrices store and its primary test metric."""
    rows, (name, measure) = facts.stages(metrics), primary(metrics)
    common = facts.majority(metrics) if name == "accuracy" else None
    finite = {key: row for key, row in rows.items() if math.isfinite(row.score)}
    places = {key: (100 * row.encoder, _drawn(measure, row.score)) for key, row in finite.items()}
    width, height = (340, 300) if narrow else (560, 340)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        # Room for the labels of the full size, which stand to the right of it.
        axes.set_xlim(0, 30 + max([100, *(x for x, _ in places.values())]))
        for start, end in pairwise(places.values()):
            arrow = {"arrowstyle": "->", "color": "#969b9f", "shrinkA": 6, "shrinkB": 6}
            axes.annotate("", end, start, arrowprops=arrow, zorder=2.5)
        taken: list[float] = []
        for key, (x, y) in places.items():
            row, (colour, marker) = rows[key], _look(key)
            # Bars of one size lie on each other: the later, the narrower.
            below = sum(abs(x - u) < 2 for u in taken)
            taken.append(x)
            if name == "accuracy" and row.low is not None and row.high is not None:
                axes.plot(
                    [x, x],
                    [100 * row.low, 100 * row.high],
                    color=colour,
                    linewidth=8 / (1 + 2 * below),
                    alpha=0.8 if below else 0.3,
                    solid_capstyle="butt",
                )
            axes.plot([x], [y], marker, color=colour, markersize=7)
        axes.margins(y=0.12)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high)
        for key, (x, _) in places.items():
            column = {k: v for k, (u, v) in places.items() if abs(u - x) < 2}
            right = x > 98 or x < 38
            line = "\n" if narrow else " "
            gap = (0.13 if narrow else 0.06) * (high - low)
            axes.annotate(
                f"{rows[key].label}{line}{measure.show(rows[key].score)}",
                (x, apart(column, gap)[key]),
                xytext=(8 if right else -8, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                color=_look(key)[0] if key != "dense" else INK,
                fontweight="bold" if key == "final" else "normal",
            )
        if common is not None and low < 100 * common < high:
            axes.axhline(100 * common, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
            axes.annotate(
                "always the most common class",
                (_widest_gap([x for x, _ in places.values()]), 100 * common),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=MUTED,
                fontsize=9.5,
            )
        axes.set_xticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
        line = "\n" if narrow else " "
        axes.set_xlabel(
            f"numbers stored for the compressible matrices,{line}share of the dense model"
        )
        titled = measure.titled
        on_text = f"{titled[0].upper()}{titled[1:]} of the {metrics.get('judged_by')}"
        axes.set_title(f"Test {titled}" if facts.is_trained(metrics) else on_text)
        _amounts(axes, measure)

    spoken = ", ".join(f"{row.label} {measure.show(row.score)}" for row in rows.values())
    called = f"{measure.name[0].upper()}{measure.name[1:]} against size: {spoken}"
    return svg("size-narrow" if narrow else "size", called, width, height, draw)


def _drawn(measure: Measure, value: float) -> float:
    """Where a value stands: shares by their percents, amounts by their logarithms."""
    if measure.less:
        return math.log10(value)
    return value if measure.correlation else 100 * value


def _amounts(axes: Any, measure: Measure) -> None:
    """Write amounts where their logarithms stand, whole multiples of something."""
    from matplotlib.ticker import MaxNLocator

    class Places(MaxNLocator):
        def tick_values(self, vmin: float, vmax: float) -> Sequence[float]:
            decades = np.arange(np.floor(vmin), np.ceil(vmax) + 1)
            if vmax - vmin > 3:
                return list(decades)
            if vmax - vmin > 0.5:
                parts = [1, 2, 5] if vmax - vmin > 1.2 else [1, 1.5, 2, 3, 5, 7]
                return list(np.add.outer(decades, np.log10(parts)).ravel())
            amounts = np.asarray(super().tick_values(10**vmin, 10**vmax))
            return list(np.log10(amounts[amounts > 0]))

    if measure.less:
        axes.yaxis.set_major_locator(Places(nbins=5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(
            lambda place, _: f"{10**place:,.0f}" if place > 2 else f"{10**place:.3g}"
        )


def _widest_gap(places: Sequence[float]) -> float:
    """Middle of the widest stretch of 0 to 100 that holds none of `places`."""
    edges = sorted([0.0, *places])
    return max((right - left, (left + right) / 2) for left, right in pairwise(edges))[1]


def training_curves(metrics: Metrics, log: Log, narrow: bool = False) -> str:
    """Loss, validation metric and the two schedules: a column per stage, a row per quantity."""
    measure = primary(metrics)[1]
    stages = list(log)
    schedule = any(log[s].sparsity or log[s].p for s in stages)
    scores = f"Validation {measure.titled}"
    titles = ["Training loss", scores, *(["Schedules, %"] if schedule else [])]
    short = {"Training loss": "Loss"}
    short[scores] = measure.titled.replace(measure.name, "Validation")

    def draw(figure: Any) -> None:
        grid = figure.subplots(len(titles), len(stages), squeeze=False, sharey="row")
        for column, stage in enumerate(stages):
            phase = log[stage]
            axes = dict(zip(titles, grid[:, column], strict=True))
            _loss(axes["Training loss"], phase.loss)
            _scores(axes[scores], phase.validation, measure)
            if schedule:
                _schedules(axes["Schedules, %"], phase)
            last = phase.loss[-1][0]
            for axis in grid[:, column]:
                axis.set_xlim(-0.02 * last, 1.04 * last)
                axis.locator_params(axis="x", nbins=2 if narrow else 4, integer=True)
                axis.locator_params(axis="y", nbins=5)
                if axis is not grid[-1, column]:
                    axis.tick_params(labelbottom=False)
            said = f"step of {facts.phase(metrics, stage).lower()}"
            grid[-1, column].set_xlabel("\n".join(wrap(said, 11)) if narrow else said)
        for row, title in enumerate(titles):
            # A title may not push the columns apart.
            grid[row, 0].set_title(short.get(title, title) if narrow else title)

    names = ", ".join(facts.phase(metrics, s) for s in stages)
    name, width = ("training-narrow", 340) if narrow else ("training", 620)
    return svg(name, f"Training curves of {names}", width, 60 + 140 * len(titles), draw)


def _loss(axes: Any, line: Line) -> None:
    steps, values = np.array(line, dtype=float).T
    axes.plot(steps, values, color=BLUE, alpha=0.3, linewidth=1)
    # A mean stands at the mean of its steps: the last is logged soon after the one before it. Of
    # three values or fewer there is one mean.
    few = {"marker": "o", "markersize": 5} if len(steps) <= 3 else {}
    axes.plot(smooth(steps), smooth(values), color=BLUE, **few)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a tenth of the curve, the window cut at both ends.

    A value is the loss on one batch, mostly noise: five are averaged or more, three at the ends, so
    that neither a short curve nor the end of one follows single batches.
    """
    half = max(len(values) // 20, 2)
    window = np.ones(2 * half + 1)
    sums, counts = (np.convolve(v, window)[half:-half] for v in (values, np.ones(len(values))))
    return sums / counts


def _scores(axes: Any, line: Line, measure: Measure) -> None:
    finite = [(step, value) for step, value in line if value is not None and math.isfinite(value)]
    if not finite:
        return
    steps, values = np.array([(step, _drawn(measure, value)) for step, value in finite]).T
    _amounts(axes, measure)
    axes.plot(steps, values, "o-", color=BLUE, markersize=4.5, linewidth=1.2)
    # The last, not the best: the weights after the last step are the ones kept.
    axes.annotate(
        measure.show(finite[-1][1]).removesuffix(" %"),
        (steps[-1], values[-1]),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        color=BLUE,
    )
    axes.margins(y=0.25)


def _schedules(axes: Any, phase: Phase) -> None:
    if not phase.sparsity and not phase.p:
        axes.annotate(
            "none in\nthis stage",
            (0.5, 0.6),  # between two lines of the grid
            xycoords="axes fraction",
            ha="center",
            va="center",
            color=MUTED,
            fontsize=9.5,
        )
    for line, label, colour in (
        (phase.sparsity, "weights\nremoved", GREEN),
        (phase.p, "chance p of\ndense matrix", ORANGE),
    ):
        if line:
            steps, values = np.array(line, dtype=float).T
            axes.plot(steps, 100 * values, color=colour, marker="o" if len(line) == 1 else "")
            rising = values[-1] >= values[0]
            axes.annotate(
                label,
                (0.97, 0.12) if rising else (0.97, 0.88),
                xycoords="axes fraction",
                ha="right",
                va="bottom" if rising else "top",
                color=colour,
                fontsize=9.5,
            )
    axes.set_ylim(-4, 104)

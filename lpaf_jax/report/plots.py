"""The figures of a run, each a function from plain data to one inline <svg>."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from textwrap import wrap
from typing import Any

import numpy as np

from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics
from lpaf_jax.report.labels import Room, Spot
from lpaf_jax.report.logs import Line, Log, Phase
from lpaf_jax.report.matrix_plots import apart
from lpaf_jax.report.measures import Measure, primary
from lpaf_jax.report.scales import amounts, drawn
from lpaf_jax.report.svg import BLUE, GREEN, GREY, INK, MUTED, ORANGE, svg

# Of the stages there mostly are: colour and marker. Others take those in the middle in turn.
_LOOKS = {"dense": (GREY, "s"), "pruned": (GREEN, "D"), "factorized": (ORANGE, "v")}
_LOOKS["final"] = (BLUE, "o")


Places = dict[str, tuple[float, float]]
_LABEL = 10.5


def _look(stage: str) -> tuple[str, str]:
    return _LOOKS.get(stage, _LOOKS.get(stage.partition("-")[0], (GREEN, "^")))


def score_against_size(metrics: Metrics, narrow: bool = False) -> str:
    """Every stage by the numbers its compressible matrices store and its primary test metric."""
    rows, (name, measure) = facts.stages(metrics), primary(metrics)
    common = facts.majority(metrics) if name == "accuracy" else None
    finite = {key: row for key, row in rows.items() if math.isfinite(row.score)}
    places = {key: (100 * row.encoder, drawn(measure, row.score)) for key, row in finite.items()}
    space = "\n" if narrow else " "
    texts = {key: f"{rows[key].label}{space}{measure.show(rows[key].score)}" for key in places}
    width, height = (340, 300) if narrow else (560, 340)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        # Room for the labels of the full size, which stand to the right of it.
        axes.set_xlim(0, 30 + max([100, *(x for x, _ in places.values())]))
        _draw_stages(axes, places, finite if name == "accuracy" else {})
        axes.margins(y=0.12)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high)
        axes.set_xticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
        axes.set_xlabel(
            f"weights stored for the compressible matrices,{space}share of the dense model"
        )
        titled = measure.titled
        on_text = f"{titled[0].upper()}{titled[1:]} of the {metrics.get('judged_by')}"
        axes.set_title(f"Test {titled}" if facts.is_trained(metrics) else on_text)
        amounts(axes, measure)
        level = 100 * common if common is not None and low < 100 * common < high else None
        _label_stages(axes, places, texts, level)

    spoken = ", ".join(f"{row.label} {measure.show(row.score)}" for row in rows.values())
    called = f"{measure.name[0].upper()}{measure.name[1:]} against size: {spoken}"
    return svg("size-narrow" if narrow else "size", called, width, height, draw)


def _draw_stages(axes: Any, places: Places, bars: Mapping[str, facts.Row]) -> None:
    """Markers, the intervals of `bars`, and an arrow from each stage to the next."""
    for start, end in pairwise(places.values()):
        arrow = {"arrowstyle": "->", "color": "#969b9f", "shrinkA": 6, "shrinkB": 6}
        axes.annotate("", end, start, arrowprops=arrow, zorder=2.5)
    taken: list[float] = []
    for key, (x, y) in places.items():
        colour, marker = _look(key)
        # Bars of one size lie on each other: the later, the narrower.
        below = sum(abs(x - u) < 2 for u in taken)
        taken.append(x)
        ends = (bars[key].low, bars[key].high) if key in bars else ()
        if ends and None not in ends:
            axes.plot(
                [x, x],
                [100 * end for end in ends if end is not None],
                color=colour,
                linewidth=8 / (1 + 2 * below),
                alpha=0.8 if below else 0.3,
                solid_capstyle="butt",
            )
        axes.plot([x], [y], marker, color=colour, markersize=7)


def _label_stages(axes: Any, places: Places, texts: Mapping[str, str], level: float | None) -> None:
    """A label beside each marker, clear of the arrows; and the level of the most common class."""
    if level is not None:
        axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
    room = Room(axes)
    for start, end in pairwise(places.values()):
        room.line(*zip(start, end, strict=True))
    for key, (x, _) in places.items():
        # Of one size, they stand one over the other.
        column = {k: v for k, (u, v) in places.items() if abs(u - x) < 2}
        y = apart(column, room.height_of(texts[key], _LABEL))[key]
        right, left = (8, "left"), (-8, "right")
        sides = (right, left) if x > 98 or x < 38 else (left, right)
        rise = 5 + 5 * len(texts[key].split("\n"))
        room.label(
            texts[key],
            [Spot(x, y, dx, dy, ha) for dx, ha in sides for dy in (0, -rise, rise)],
            size=_LABEL,
            color=_look(key)[0] if key != "dense" else INK,
            fontweight="bold" if key == "final" else "normal",
        )
    if level is not None:
        middle = _widest_gap([x for x, _ in places.values()])
        over, under = (3, "bottom"), (-3, "top")
        spots = [Spot(middle, level, 0, dy, "center", va) for dy, va in (over, under)]
        room.label("always the most common class", spots)


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
    steps, values = np.array([(step, drawn(measure, value)) for step, value in finite]).T
    amounts(axes, measure)
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

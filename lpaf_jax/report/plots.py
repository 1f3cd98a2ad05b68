"""The figures of a run, each a function from plain data to one inline <svg>."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics, Stage
from lpaf_jax.report.logs import Line, Log, Phase
from lpaf_jax.report.svg import BLUE, GREEN, GREY, INK, MUTED, ORANGE, svg

_STAGE_COLOURS = {"dense": GREY, "pruned": GREEN, "factorized": ORANGE, "final": BLUE}


def accuracy_against_size(metrics: Metrics) -> str:
    """Every stage by the numbers its compressible matrices store and its test accuracy."""
    rows = facts.stages(metrics)
    common = 100 * facts.majority(metrics)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        places = _dodged(list(rows.values()))
        axes.plot(*zip(*places, strict=True), color="#c4c7c2", linewidth=1.5, zorder=1)
        for index, ((key, row), (x, y)) in enumerate(zip(rows.items(), places, strict=True)):
            colour = _STAGE_COLOURS[key]
            low, high = 100 * row.low, 100 * row.high
            axes.plot([x, x], [low, high], color=colour, linewidth=2, alpha=0.55)
            axes.plot([x], [y], "o", color=colour, markersize=8)
            # Of stages side by side one is labelled above; of equal ones, the later.
            beside = [(v, i) for i, (u, v) in enumerate(places) if abs(u - x) < 4]
            above = max(beside) == (y, index)
            axes.annotate(
                f"{row.label} {y:.1f} %",
                (x, high if above else low),
                xytext=(0, 5 if above else -5),
                textcoords="offset points",
                # Close to the full size, step aside from the dense model's label.
                ha="right" if 75 < x < 99 else "center",
                va="bottom" if above else "top",
                color=colour if key != "dense" else INK,
                fontweight="bold" if key == "final" else "normal",
            )
        axes.margins(y=0.16)
        axes.set_xlim(0, max(118, max(x for x, _ in places) + 18))
        low, high = axes.get_ylim()
        if low < common < high:
            axes.axhline(common, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
            axes.annotate(
                "always the most common class",
                (_widest_gap([x for x, _ in places]), common),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                color=MUTED,
                fontsize=9.5,
            )
        axes.set_xticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
        axes.set_xlabel("numbers stored for the compressible matrices, share of the dense model")
        axes.set_title("Test accuracy, %")

    spoken = ", ".join(f"{row.label} {facts.percent(row.accuracy)}" for row in rows.values())
    return svg("size", f"Accuracy against size: {spoken}", 560, 340, draw)


def _widest_gap(places: Sequence[float]) -> float:
    """Middle of the widest stretch of 0 to 100 that holds none of `places`."""
    edges = sorted([0.0, *places])
    return max((right - left, (left + right) / 2) for left, right in pairwise(edges))[1]


def _dodged(rows: Sequence[Stage]) -> list[tuple[float, float]]:
    """Points in percent; stages of equal size stand side by side so that no bar hides another."""
    places: list[tuple[float, float]] = []
    for row in rows:
        x = 100 * row.encoder
        taken = sum(abs(u - x) < 2 for u, _ in places)
        places.append((x + 2.2 * taken, 100 * row.accuracy))
    return places


def training_curves(log: Log) -> str:
    """Loss, validation accuracy and the two schedules: a column per stage, a row per quantity."""
    stages = list(log)
    schedule = any(log[s].sparsity or log[s].p for s in stages)
    titles = ["Training loss", "Validation accuracy, %", *(["Schedules, %"] if schedule else [])]

    def draw(figure: Any) -> None:
        grid = figure.subplots(len(titles), len(stages), squeeze=False, sharey="row")
        for column, stage in enumerate(stages):
            phase = log[stage]
            axes = dict(zip(titles, grid[:, column], strict=True))
            _loss(axes["Training loss"], phase.loss)
            _scores(axes["Validation accuracy, %"], phase.validation)
            if schedule:
                _schedules(axes["Schedules, %"], phase)
            last = phase.loss[-1][0]
            for axis in grid[:, column]:
                axis.set_xlim(-0.02 * last, 1.04 * last)
                axis.locator_params(axis="x", nbins=4, integer=True)
                axis.locator_params(axis="y", nbins=5)
                if axis is not grid[-1, column]:
                    axis.tick_params(labelbottom=False)
            grid[-1, column].set_xlabel(f"step of {facts.PHASES[stage].lower()}")
        for row, title in enumerate(titles):
            grid[row, 0].set_title(title)

    names = ", ".join(facts.PHASES[s] for s in stages)
    return svg("training", f"Training curves of {names}", 620, 60 + 140 * len(titles), draw)


def _loss(axes: Any, line: Line) -> None:
    steps, values = np.array(line, dtype=float).T
    single = {"marker": "o", "markersize": 5} if len(steps) == 1 else {}
    axes.plot(steps, values, color=BLUE, alpha=0.22, linewidth=1)
    axes.plot(steps, smooth(values), color=BLUE, **single)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a tenth of the curve, the window cut at both ends."""
    window = np.ones(2 * (len(values) // 20) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _scores(axes: Any, line: Line) -> None:
    steps, values = np.array(line, dtype=float).T
    axes.plot(steps, 100 * values, "o-", color=BLUE, markersize=4.5, linewidth=1.2)
    # The last, not the best: the weights after the last step are the ones kept.
    axes.annotate(
        f"{100 * values[-1]:.1f}",
        (steps[-1], 100 * values[-1]),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        color=BLUE,
    )
    axes.margins(y=0.25)


def _schedules(axes: Any, phase: Phase) -> None:
    if not phase.sparsity and not phase.p:
        axes.annotate(
            "none in this stage",
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

"""The figures of the report, each a function from plain data to one inline <svg>."""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics, Stage
from lpaf_jax.report.logs import Log
from lpaf_jax.report.svg import BLUE, GREEN, GREY, GRID, INK, MUTED, ORANGE, svg

METHODS = {"dense": "dense", "first_order": "first-order", "magnitude": "magnitude"}
COLOURS = {"dense": GREY, "first_order": BLUE, "magnitude": ORANGE}
_STAGE_COLOURS = {"dense": GREY, "pruned": GREEN, "factorized": ORANGE, "final": BLUE}


def accuracy_against_size(metrics: Metrics) -> str:
    """Every stage by the numbers its compressible matrices store and its test accuracy."""
    rows = [r for r in facts.stages(metrics) if r.accuracy is not None and r.encoder is not None]
    common = facts.majority(metrics)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        places = _dodged(rows)
        axes.plot(*zip(*places, strict=True), color="#c4c7c2", linewidth=1.5, zorder=1)
        for row, (x, y) in zip(rows, places, strict=True):
            colour = _STAGE_COLOURS[row.key]
            low, high = _bounds(row)
            axes.plot([x, x], [low, high], color=colour, linewidth=2, alpha=0.55)
            axes.plot([x], [y], "o", color=colour, markersize=8)
            above = all(y >= v for u, v in places if abs(u - x) < 4)
            axes.annotate(
                f"{row.label} {y:.1f} %",
                (x, high if above else low),
                xytext=(0, 5 if above else -5),
                textcoords="offset points",
                # Close to the full size, step aside from the dense model's label.
                ha="right" if 75 < x < 99 else "center",
                va="bottom" if above else "top",
                color=colour if row.key != "dense" else INK,
                fontweight="bold" if row.key == "final" else "normal",
            )
        axes.margins(y=0.16)
        axes.set_xlim(0, max(118, max(x for x, _ in places) + 18))
        low, high = axes.get_ylim()
        if common is not None and low < 100 * common < high:
            axes.axhline(100 * common, color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
            axes.annotate(
                "always the most common class",
                (axes.get_xlim()[1], 100 * common),
                xytext=(-4, 3),
                textcoords="offset points",
                ha="right",
                color=MUTED,
                fontsize=9.5,
            )
        axes.set_xticks(range(0, 101, 25), [f"{tick} %" for tick in range(0, 101, 25)])
        axes.set_xlabel("numbers stored for the compressible matrices, share of the dense model")
        axes.set_title("Test accuracy, %")

    spoken = ", ".join(f"{row.label} {facts.percent(row.accuracy)}" for row in rows)
    return svg("size", f"Accuracy against size: {spoken}", 560, 340, draw)


def _bounds(row: Stage) -> tuple[float, float]:
    assert row.accuracy is not None
    low = row.accuracy if row.low is None else row.low
    high = row.accuracy if row.high is None else row.high
    return 100 * low, 100 * high


def _dodged(rows: Sequence[Stage]) -> list[tuple[float, float]]:
    """Points in percent; stages of equal size stand side by side so that no bar hides another."""
    places: list[tuple[float, float]] = []
    for row in rows:
        x = 100 * (row.encoder or 0.0)
        taken = sum(abs(u - x) < 2 for u, _ in places)
        places.append((x + 2.2 * taken, 100 * (row.accuracy or 0.0)))
    return places


def training_curves(log: Log) -> str:
    """Loss, validation accuracy and the two schedules: a column per stage, a row per quantity."""
    stages = list(log)
    schedule = any(log[s].sparsity or log[s].p for s in stages)
    validation = any(log[s].validation for s in stages)
    titles = ["Training loss"]
    titles += ["Validation accuracy, %"] if validation else []
    titles += ["Schedules, %"] if schedule else []

    def draw(figure: Any) -> None:
        grid = figure.subplots(len(titles), len(stages), squeeze=False, sharey="row")
        for column, stage in enumerate(stages):
            phase = log[stage]
            axes = dict(zip(titles, grid[:, column], strict=True))
            _loss(axes["Training loss"], phase.loss)
            if validation:
                _scores(axes["Validation accuracy, %"], phase.validation)
            if schedule:
                _schedules(axes["Schedules, %"], phase)
            last = max((step for line in phase.lines() for step, _ in line), default=1)
            for axis in grid[:, column]:
                axis.set_xlim(-0.02 * last, 1.04 * last)
                axis.locator_params(axis="x", nbins=4, integer=True)
                axis.locator_params(axis="y", nbins=5)
                if axis is not grid[-1, column]:
                    axis.tick_params(labelbottom=False)
            name = facts.PHASES.get(stage, stage)
            grid[-1, column].set_xlabel(f"step of {name.lower()}")
        for row, title in enumerate(titles):
            grid[row, 0].set_title(title)

    names = ", ".join(facts.PHASES.get(s, s) for s in stages)
    return svg("training", f"Training curves of {names}", 620, 60 + 140 * len(titles), draw)


def _loss(axes: Any, line: Sequence[tuple[float, float]]) -> None:
    if not line:
        return
    steps, values = np.array(line, dtype=float).T
    single = {"marker": "o", "markersize": 5} if len(steps) == 1 else {}
    axes.plot(steps, values, color=BLUE, alpha=0.22, linewidth=1)
    axes.plot(steps, smooth(values), color=BLUE, **single)


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred moving average over a tenth of the curve, the window cut at both ends."""
    window = np.ones(2 * (len(values) // 20) + 1)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _scores(axes: Any, line: Sequence[tuple[float, float]]) -> None:
    if not line:
        return
    steps, values = np.array(line, dtype=float).T
    axes.plot(steps, 100 * values, "o-", color=BLUE, markersize=4.5, linewidth=1.2)
    best = int(np.argmax(values))
    axes.annotate(
        f"{100 * values[best]:.1f}",
        (steps[best], 100 * values[best]),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        color=BLUE,
    )
    axes.margins(y=0.25)


def _schedules(axes: Any, phase: Any) -> None:
    if not phase.sparsity and not phase.p:
        axes.annotate(
            "none in this stage",
            (0.5, 0.5),
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


def spectrum(item: Mapping[str, Any], index: int) -> str:
    """Singular values of one matrix, relative to its largest, under each way of pruning."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row, (key, label) in enumerate(METHODS.items()):
            values = np.asarray(item.get(key) or [], dtype=float)
            if values.size == 0:
                continue
            # Empty rows and columns leave exact zeros: there the curve drops out of sight.
            axes.plot(np.arange(1, values.size + 1), values, color=COLOURS[key])
            _key(axes, (0.04, 0.22 - 0.09 * row), label, COLOURS[key])
        axes.set_yscale("log")
        axes.set_ylim(0.008, 1.25)
        axes.set_yticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
        axes.minorticks_off()
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("singular value, from the largest")
        axes.set_title(short_name(str(item.get("name", ""))))

    return svg(f"spectrum{index}", f"Singular values of {item.get('name')}", 290, 240, draw)


def _key(axes: Any, place: tuple[float, float], label: str, colour: str) -> None:
    """A label in the curve's own colour, in a corner that the curves stay out of."""
    axes.annotate(
        label,
        place,
        xycoords="axes fraction",
        ha="left" if place[0] < 0.5 else "right",
        va="center",
        color=colour,
        fontweight="bold",
    )


def unpack(item: Mapping[str, Any], key: str) -> np.ndarray:
    """The (m, n) mask stored as base64 of its packed bits."""
    rows, columns = (int(extent) for extent in item["shape"])
    bits = np.frombuffer(base64.b64decode(item[key]), dtype=np.uint8)
    return np.unpackbits(bits, count=rows * columns).reshape(rows, columns)


def pattern(item: Mapping[str, Any], key: str, index: int) -> str:
    """Which weights one way of pruning kept: the darker, the more of a small block is kept."""
    from matplotlib.colors import LinearSegmentedColormap

    mask = unpack(item, key)
    rows, columns = mask.shape

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.imshow(
            _blocks(mask),
            cmap=LinearSegmentedColormap.from_list("kept", ["#ffffff", COLOURS[key]]),
            vmin=0,
            vmax=1,
            aspect="auto",
            interpolation="none",
            extent=(0, columns, rows, 0),
        )
        axes.grid(visible=False)
        axes.set_xticks([0, columns])
        axes.set_yticks([0, rows])
        axes.set_xlabel("column (output)", labelpad=-6)
        axes.set_ylabel("row (input)", labelpad=-14)
        axes.set_title(f"kept by {METHODS[key]}", color=COLOURS[key])

    label = f"Weights of {item.get('name')} kept by {METHODS[key]} pruning"
    return svg(f"pattern{index}{key}", label, 290, 250, draw)


def _blocks(mask: np.ndarray, limit: int = 384) -> np.ndarray:
    """Means over blocks just large enough that no side has more than `limit` of them."""
    for axis in (0, 1):
        step = -(-mask.shape[axis] // limit)
        starts = np.arange(0, mask.shape[axis], step)
        widths = np.diff(np.append(starts, mask.shape[axis]))
        sums = np.add.reduceat(mask.astype(float), starts, axis=axis)
        mask = sums / (widths[:, None] if axis == 0 else widths)
    return mask


def kept_by_row(item: Mapping[str, Any], index: int) -> str:
    """How unevenly each way of pruning spreads what it keeps: share kept per row, sorted."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for row, key in enumerate(("first_order", "magnitude")):
            kept = np.sort(unpack(item, key).mean(axis=1))[::-1]
            axes.plot(np.arange(1, kept.size + 1), 100 * kept, color=COLOURS[key])
            _key(axes, (0.98, 0.93 - 0.09 * row), METHODS[key], COLOURS[key])
        axes.set_ylim(-2, 104)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("rows, from the fullest")
        axes.set_title("% of each row kept")

    return svg(f"kept{index}", f"Share kept per row of {item.get('name')}", 290, 250, draw)


def effective_ranks(matrices: Sequence[Mapping[str, Any]]) -> str:
    """Effective rank of every matrix under each way of pruning, grouped by kind of matrix."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for matrix in matrices:
        groups.setdefault(kind(str(matrix.get("name", ""))), []).append(matrix)

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        start = 0
        for name, members in groups.items():
            places = np.arange(start, start + len(members))
            for key, colour in COLOURS.items():
                values = [facts.number(m, key, "effective_rank") for m in members]
                heights = [np.nan if v is None else v for v in values]
                axes.plot(places, heights, "o-", color=colour, markersize=4, linewidth=1.2)
            middle = places.mean()
            axes.annotate(
                name,
                (middle, 0),
                xycoords=("data", "axes fraction"),
                xytext=(0, -7),
                textcoords="offset points",
                ha="center",
                va="top",
                color=MUTED,
                fontsize=9.5,
            )
            start += len(members) + 1
            if start > len(members) + 1:
                axes.axvline(places[0] - 1, color=GRID, linewidth=0.8)
        for key, label in METHODS.items():
            last = facts.number(list(groups.values())[-1][-1], key, "effective_rank")
            if last is not None:
                axes.annotate(
                    label,
                    (start - 2, last),
                    xytext=(8, 0),
                    textcoords="offset points",
                    va="center",
                    color=COLOURS[key],
                    fontweight="bold",
                    annotation_clip=False,
                )
        axes.set_xticks([])
        axes.set_xlim(-1, start + 0.13 * start)
        axes.set_ylim(bottom=0)
        axes.set_title("Effective rank; within a group, first layer to last")

    return svg("ranks", "Effective rank of every compressible matrix", 620, 310, draw)


_KINDS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attn out",
    "intermediate.dense": "ff in",
    "output.dense": "ff out",
}


def kind(name: str) -> str:
    """What sort of matrix a path names, the layer's number left out."""
    tail = re.split(r"\.\d+\.", name)[-1]
    return _KINDS.get(tail, ".".join(tail.split(".")[-2:]))


def short_name(name: str) -> str:
    """`layer 1, query` for the path of a compressible kernel; other names as they are."""
    found = re.search(r"\.(\d+)\.", name)
    return f"layer {int(found[1]) + 1}, {kind(name)}" if found else name

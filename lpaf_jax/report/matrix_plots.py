"""The figures of the matrices inside a model, each one inline <svg>."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lpaf_jax.report.labels import Room, Spot
from lpaf_jax.report.matrix_names import kind, order, short_name
from lpaf_jax.report.svg import BLUE, GREY, GRID, MUTED, ORANGE, svg

METHODS = {"dense": "dense", "pruned": "this run", "magnitude": "magnitude"}
# Three of these stand side by side, each about as wide on the page as it is here.
_SMALL = 250
Groups = dict[str, list[Mapping[str, Any]]]
COLOURS = {"dense": GREY, "pruned": BLUE, "magnitude": ORANGE}
_STYLES = {"dense": "dashed", "pruned": "solid", "magnitude": "dashdot"}
_MARKERS = {"dense": "s", "pruned": "o", "magnitude": "^"}


def spectrum(item: Mapping[str, Any], ranks: str, index: int) -> str:
    """Singular values of one matrix, relative to its largest, under each way of pruning.

    `ranks` is said beside the name of the matrix.
    """

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for key in METHODS:
            values = np.asarray(item[key], dtype=float)
            # Empty rows and columns leave exact zeros: there the curve drops out of sight.
            places = np.arange(1, values.size + 1)
            axes.plot(places, values, color=COLOURS[key], linestyle=_STYLES[key])
        axes.set_yscale("log")
        axes.set_ylim(0.008, 1.25)
        axes.set_yticks([0.01, 0.1, 1], ["0.01", "0.1", "1"])
        axes.minorticks_off()
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("singular value, from the largest")
        axes.set_title(f"{short_name(item['name'])} ({ranks})")
        _spectrum_key(axes, [np.asarray(item[key], dtype=float) for key in METHODS])

    return svg(f"spectrum{index}", f"Singular values of {item['name']}", _SMALL, 215, draw)


def _spectrum_key(axes: Any, curves: Sequence[np.ndarray]) -> None:
    """Which curve is which, in the corner that the curves stay out of."""
    room = Room(axes)
    for values in curves:
        thin = np.arange(0, values.size, max(1, values.size // 60))
        room.line(thin + 1.0, np.maximum(values[thin], 1e-3))
    low, high = axes.get_xlim()
    below = Spot(low + 0.04 * (high - low), 0.009, ha="left", va="bottom")
    above = Spot(low + 0.98 * (high - low), 1.2, ha="right", va="top")
    first = room.clearest("\n".join(METHODS.values()), [below, above], size=11) is above
    for row, (key, label) in enumerate(METHODS.items()):
        place = (0.98, 0.94 - 0.09 * row) if first else (0.04, 0.24 - 0.09 * row)
        _key(axes, place, label, COLOURS[key])


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

    label = f"Weights of {item['name']} kept by {METHODS[key]}"
    return svg(f"pattern{index}{key}", label, _SMALL, 225, draw)


def _blocks(mask: np.ndarray, limit: int = 384) -> np.ndarray:
    """Means over blocks just large enough that no side has more than `limit` of them."""
    for axis in (0, 1):
        step = -(-mask.shape[axis] // limit)
        starts = np.arange(0, mask.shape[axis], step)
        widths = np.diff(np.append(starts, mask.shape[axis]))
        sums = np.add.reduceat(mask.astype(float), starts, axis=axis)
        mask = sums / (widths[:, None] if axis == 0 else widths)
    return mask


def kept_by_line(item: Mapping[str, Any], index: int) -> str:
    """How unevenly each way of pruning spreads what it keeps over rows and over columns."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for place, key in enumerate(("pruned", "magnitude")):
            mask = unpack(item, key)
            for axis, style in ((1, "solid"), (0, (0, (1.5, 1.5)))):
                kept = np.sort(mask.mean(axis=axis))[::-1]
                share = np.linspace(0, 100, kept.size)
                axes.plot(share, 100 * kept, color=COLOURS[key], linestyle=style)
            _key(axes, (0.98, 0.93 - 0.09 * place), METHODS[key], COLOURS[key])
        axes.set_ylim(-2, 104)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("% of rows or columns, fullest first")
        axes.set_title("% kept: — rows, ··· columns")

    label = f"Share kept in each row and column of {item['name']}"
    return svg(f"kept{index}", label, _SMALL, 225, draw)


def effective_ranks(matrices: Sequence[Mapping[str, Any]], narrow: bool = False) -> str:
    """Effective rank of every matrix under each way of pruning, grouped by kind of matrix."""
    groups: Groups = {}
    for matrix in sorted(matrices, key=order):
        groups.setdefault(kind(matrix["name"]), []).append(matrix)
    named = list(groups.items())
    half = -(-len(named) // 2)
    strips = [dict(named[:half]), dict(named[half:])] if narrow else [groups]
    strips = [strip for strip in strips if strip]

    def draw(figure: Any) -> None:
        rows = figure.subplots(len(strips), 1, squeeze=False, sharey=True)[:, 0]
        for axes, strip in zip(rows, strips, strict=True):
            _rank_curves(axes, strip, 0.32 if narrow else 0.13)
        _end_labels(rows[-1], strips[-1], 0.1 if narrow else 0.06)
        rows[0].set_title("Effective rank; within a group, first layer to last")

    name, width, height = ("ranks-narrow", 340, 420) if narrow else ("ranks", 620, 310)
    return svg(name, "Effective rank of every compressible matrix", width, height, draw)


def _rank_curves(axes: Any, groups: Groups, room: float) -> None:
    """A piece of curve for each group and way of pruning; `room` is left for labels, as a share."""
    start = 0
    for name, members in groups.items():
        places = np.arange(start, start + len(members))
        for key, colour in COLOURS.items():
            heights = [m[key]["effective_rank"] for m in members]
            marker, style = _MARKERS[key], _STYLES[key]
            axes.plot(
                places,
                heights,
                marker=marker,
                linestyle=style,
                color=colour,
                markersize=4,
                linewidth=1.2,
            )
        axes.annotate(
            name,
            (places.mean(), 0),
            xycoords=("data", "axes fraction"),
            xytext=(0, -7),
            textcoords="offset points",
            ha="center",
            va="top",
            color=MUTED,
            fontsize=9.5,
        )
        if start:
            axes.axvline(places[0] - 1, color=GRID, linewidth=0.8)
        start += len(members) + 1
    axes.set_xticks([])
    axes.set_xlim(-1, (1 + room) * start)
    axes.margins(y=0.12)


def _end_labels(axes: Any, groups: Groups, gap: float) -> None:
    """The ways of pruning, each at the end of its curve; `gap` is a share of the axis."""
    low, high = axes.get_ylim()
    members = list(groups.values())
    ends = {key: members[-1][-1][key]["effective_rank"] for key in METHODS}
    for key, height in apart(ends, gap * (high - low)).items():
        axes.annotate(
            METHODS[key],
            (sum(len(group) + 1 for group in members) - 2, height),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[key],
            fontweight="bold",
        )


def apart(heights: Mapping[str, float], gap: float) -> dict[str, float]:
    """Heights for labels: as given, but moved up as far as needed to stand `gap` apart."""
    placed: dict[str, float] = {}
    floor = -np.inf
    for key, height in sorted(heights.items(), key=lambda item: item[1]):
        placed[key] = floor = max(height, floor + gap)
    return placed

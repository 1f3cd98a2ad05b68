"""The figures of `lpaf analyze`: spectra by kind of matrix, dimensions by layer and kind."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lpaf_jax.report.matrix_names import ORDER, parts
from lpaf_jax.report.svg import AMBER, BLUE, GREEN, INK, ORANGE, PINK, SKY

Entries = Sequence[Mapping[str, Any]]
# A block has up to seven kinds of matrix.
_COLOURS = (BLUE, ORANGE, GREEN, INK, PINK, SKY, AMBER)
_STYLES: tuple[Any, ...] = ("solid", "dashed", "dotted", "dashdot", (0, (6, 2)), "solid", "dotted")
_FLOOR = 1e-3
_ANNOTATED = 12
_POINTS = 200


def kinds_of(entry: Mapping[str, Any]) -> str:
    """What sort of matrix, or of an input what it is the input of: `query, key, value`."""
    names = entry.get("names", [entry["name"]])
    found = {parts(name)[1] for name in names}
    return ", ".join(sorted(found, key=_place))


def _place(kind: str) -> int:
    first = kind.split(", ")[0] if kind not in ORDER else kind
    return ORDER.index(first) if first in ORDER else len(ORDER)


def by_kind(entries: Entries) -> dict[str, list[Mapping[str, Any]]]:
    """Entries of each kind, in the order a block uses them, first layer to last."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for entry in sorted(entries, key=lambda e: (_place(kinds_of(e)), parts(e["name"])[0])):
        groups.setdefault(kinds_of(entry), []).append(entry)
    return groups


def draw_curves(axes: Any, entries: Entries, title: str) -> None:
    """Median spectrum over the layers of each kind, and the band from least to most."""
    share = np.linspace(0, 1, _POINTS)
    for (kind, members), colour, style in zip(
        by_kind(entries).items(), _COLOURS, _STYLES, strict=False
    ):
        spectra = np.array([_resampled(e["spectrum"], share) for e in members])
        middle = np.median(spectra, axis=0)
        axes.plot(100 * share, middle, color=colour, linestyle=style, label=kind)
        low, high = spectra.min(axis=0), spectra.max(axis=0)
        axes.fill_between(100 * share, low, high, color=colour, alpha=0.1, linewidth=0)
    axes.set_yscale("log")
    axes.set_ylim(_FLOOR, 1.3)
    axes.set_yticks([1e-3, 0.01, 0.1, 1], ["0.001", "0.01", "0.1", "1"])
    axes.minorticks_off()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of all singular values, largest first")
    axes.set_ylabel("singular value, relative to the largest")
    axes.set_title(title)
    axes.legend(ncols=2, loc="best", handlelength=2.8)


def _resampled(spectrum: Sequence[float], share: np.ndarray) -> np.ndarray:
    values = np.maximum(np.asarray(spectrum, float), 1e-6)
    return np.exp(np.interp(share, np.linspace(0, 1, values.size), np.log(values)))


def draw_heat(figure: Any, axes: Any, entries: Entries, title: str) -> None:
    """Share of the dimensions that 90 % of the energy takes, by layer and kind."""
    from matplotlib.colors import LinearSegmentedColormap

    groups = by_kind(entries)
    layers = sorted({parts(e["name"])[0] for e in entries})
    values = np.full((len(groups), len(layers)), np.nan)
    for row, members in enumerate(groups.values()):
        for entry in members:
            column = layers.index(parts(entry["name"])[0])
            values[row, column] = 100 * entry["energy_rank"] / entry["full"]
    colours = LinearSegmentedColormap.from_list("share", ["#f4f8fb", BLUE])
    mesh = axes.pcolormesh(values, cmap=colours, vmin=0, vmax=100, edgecolors="white", linewidth=1)
    if len(layers) <= _ANNOTATED:
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                shade = "white" if value > 80 else INK  # readable on either side
                axes.text(
                    column + 0.5, row + 0.5, f"{value:.0f}", ha="center", va="center", color=shade
                )
    step = -(-len(layers) // _ANNOTATED)
    axes.set_xticks(np.arange(0, len(layers), step) + 0.5, [str(x) for x in layers[::step]])
    axes.set_yticks(np.arange(len(groups)) + 0.5, list(groups))
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.set_xlabel("layer")
    axes.set_title(title)
    bar = figure.colorbar(mesh, ax=axes, fraction=0.04, pad=0.02)
    bar.outline.set_visible(False)
    bar.set_label("% of all dimensions")


WEIGHTS = "Weights: singular values"
FEATURES = "Features (inputs): singular values"
WEIGHTS_HEAT = "Weights: dimensions with 90 % of the energy"
FEATURES_HEAT = "Features: dimensions with 90 % of the energy"
OUTPUTS_HEAT = "Outputs: dimensions with 90 % of the energy"


def draw_all(found: Mapping[str, Any], figure: Any) -> None:
    """Everything in one figure: curves above, heat below, weights left of features."""
    columns = [(found["weights"], WEIGHTS, WEIGHTS_HEAT)]
    if found["features"]:
        columns.append((found["features"], FEATURES, FEATURES_HEAT))
    places = figure.subplots(2, len(columns), squeeze=False, height_ratios=[1.3, 1])
    for column, (entries, curves, heat) in enumerate(columns):
        draw_curves(places[0, column], entries, curves)
        draw_heat(figure, places[1, column], entries, heat)
    over = f", on {found['texts']:,} texts of {found['source']}" if found["features"] else ""
    figure.suptitle(f"{found['model']}{over}", x=0.01, ha="left", color=INK, fontsize=13)

"""What `lpaf analyze` shows beside spectra: entries, states beside another model's, tenths."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lpaf_jax.report.facts import percent
from lpaf_jax.report.markup import Html, el, figure, join, responsive
from lpaf_jax.report.markup import table as html_table
from lpaf_jax.report.measures import MEASURES
from lpaf_jax.report.spectra_plots import by_kind
from lpaf_jax.report.svg import BLUE, GREEN, MUTED, ORANGE, plain_numbers, svg

Found = Mapping[str, Any]
ORDERS = {"plain": "of the matrices", "rows": "of rows by importance", "inputs": "by the inputs"}
"""How each order of the tenths is called."""
_LOOKS: dict[str, dict[str, Any]] = {
    "plain": {"color": BLUE, "marker": "o"},
    "rows": {"color": ORANGE, "marker": "s", "linestyle": "dashed"},
    "inputs": {"color": GREEN, "marker": "^", "linestyle": "dashdot"},
}


def probe_sentences(found: Found) -> list[str]:
    """What follows from the comparison and from the tenths, for a terminal, too."""
    lines = []
    if found["against"]:
        layers = found["against"]["layers"]
        worst = max(range(len(layers)), key=lambda i: layers[i]["error"])
        lines.append(
            f"Hidden states differ from those of {found['against']['model']} by "
            f"{percent(layers[-1]['error'])} of their energy after the last layer (linear CKA "
            f"{layers[-1]['cka']:.3f}), most {_after(worst)}: {percent(layers[worst]['error'])}."
        )
    if found["tenths"]:
        tenths, measure = found["tenths"], MEASURES[found["tenths"]["metric"]]
        for name, scores in tenths["orders"].items():
            first, last = (measure.show(scores[i]) for i in (0, -1))
            lines.append(
                f"Tenths {ORDERS[name]}: the {measure.name} is {first} without the first, {last} "
                f"without the last and {measure.show(tenths['whole'])} with all; "
                f"{_falls(scores, measure.less)}."
            )
    return lines


def _after(layer: int) -> str:
    return "after the embeddings" if layer == 0 else f"after layer {layer - 1}"


def _falls(scores: list[float], less: bool) -> str:
    """In how many of the nine steps a later tenth mattered no more than the one before it."""
    steps = np.diff(scores) * (-1 if less else 1)
    return (
        f"in {int((steps >= 0).sum())} of {len(steps)} steps, a later tenth matters no more than "
        "the one before"
    )


def entries_section(found: Found) -> Html:
    """Means over the layers of each kind of matrix."""
    heads = ["Matrix", "variance", "kurtosis", "Hoyer", "near 0", "weak rows", "weak columns"]
    rows = []
    for kind, members in by_kind(found["weights"]).items():
        of = {key: np.mean([e["entries"][key] for e in members]) for key in members[0]["entries"]}
        rows.append(
            [
                kind,
                f"{of['variance']:.3g}",
                f"{of['kurtosis']:.2f}",
                f"{of['hoyer']:.3f}",
                *(percent(float(of[key])) for key in ("tiny", "weak_rows", "weak_columns")),
            ]
        )
    text = (
        "Means over the layers. Kurtosis is 0 for a normal distribution, and higher if a few "
        "entries are far larger than the rest; Hoyer's sparsity goes from 0 (all equally large) "
        "to 1 (all but one are 0). Near 0 means less than a tenth of the standard deviation; a "
        "weak row or column has a norm of less than a tenth of the median."
    )
    return join(el("p", text), html_table(heads, rows, class_="stack"))


def against_section(found: Found) -> Html | None:
    """Error and CKA by layer."""
    if not found["against"]:
        return None
    layers, name = found["against"]["layers"], found["against"]["model"]

    def draw(drawn: Any) -> None:
        axes = drawn.subplots()
        places = np.arange(len(layers))
        lines = (("relative error", "error", ORANGE, "o"), ("1 − CKA", "cka", BLUE, "s"))
        for label, key, colour, marker in lines:
            values = [100 * (1 - e[key] if key == "cka" else e[key]) for e in layers]
            axes.plot(places, values, color=colour, marker=marker, markersize=4, label=label)
        step = -(-len(layers) // 12)
        axes.set_xticks(places[::step])
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:g} %")
        axes.set_xlabel("layer; 0 is the embeddings")
        axes.legend()

    text = (
        f"How far the hidden states are from those of {name} on the same texts: the squared error "
        "as a share of the energy, and linear CKA, which does not change if all states are "
        "rotated, scaled or shifted: if 1 − CKA is small, a later layer could compensate for the "
        "error."
    )
    rows = [
        [_after(i), percent(each["error"]), f"{each['cka']:.4f}"] for i, each in enumerate(layers)
    ]
    return el(
        "section",
        el("h2", "Hidden states compared with the other model's"),
        el("p", text),
        figure("Error and misalignment by layer.", _picture("against", "Error by layer", draw)),
        html_table(["States", "relative error", "CKA"], rows, class_="stack"),
    )


def tenths_section(found: Found) -> Html | None:
    """The metric without each tenth, in each order."""
    if not found["tenths"]:
        return None
    tenths, measure = found["tenths"], MEASURES[found["tenths"]["metric"]]
    scale = 1 if measure.correlation or measure.less else 100

    def draw(drawn: Any) -> None:
        axes = drawn.subplots()
        axes.axhline(scale * tenths["whole"], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        for name, scores in tenths["orders"].items():
            values = [scale * x for x in scores]
            axes.plot(range(1, 11), values, markersize=4, label=ORDERS[name], **_LOOKS[name])
        if measure.less:
            axes.set_yscale("log")
            plain_numbers(axes.yaxis)
        axes.set_xticks(range(1, 11))
        axes.set_xlabel("tenth removed from all matrices, largest first")
        axes.set_ylabel(measure.titled)
        axes.legend()

    text = (
        "One tenth of the singular values of every matrix is removed at a time, and the model is "
        f"evaluated on {tenths['data']}; the dotted line is the whole model. If an order reflects "
        "importance, each tenth hurts less than the one before it."
    )
    heads = ["Removed", *(ORDERS[name] for name in tenths["orders"])]
    rows = [
        [f"tenth {i + 1}", *(measure.show(scores[i]) for scores in tenths["orders"].values())]
        for i in range(10)
    ]
    return el(
        "section",
        el("h2", "Without each tenth of the spectra"),
        el("p", text),
        figure(f"{measure.head} without each tenth.", _picture("tenths", "Without tenths", draw)),
        html_table(heads, rows, class_="stack"),
    )


def _picture(name: str, label: str, draw: Callable[[Any], None]) -> Html:
    return responsive(
        svg(name, label, 620, 300, draw), svg(f"{name}-narrow", label, 360, 280, draw)
    )

"""What `lpaf analyze` shows: a table, a PNG, a page, the figures as JSON."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from lpaf_jax.core.files import atomic_write, write_json
from lpaf_jax.report import spectra_plots as plots
from lpaf_jax.report.facts import percent
from lpaf_jax.report.html import document
from lpaf_jax.report.markup import Html, el, figure, join, responsive
from lpaf_jax.report.markup import table as html_table
from lpaf_jax.report.matrix_names import order, parts
from lpaf_jax.report.probes import (
    against_section,
    entries_section,
    probe_sentences,
    tenths_section,
)
from lpaf_jax.report.svg import png, svg

_HEADS = (
    "in × out",
    "effective rank",
    "90 % energy",
    "input: effective",
    "input: 90 %",
    "output: 90 %",
)


def print_spectra(found: Mapping[str, Any], console: Console) -> None:
    """A row for each matrix, and what they come to."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for head in ("Layer", "Matrix"):
        table.add_column(head, no_wrap=True)
    for head in _HEADS if found["features"] else _HEADS[:3]:
        table.add_column(head, justify="right")
    before = None
    for entry in sorted(found["weights"], key=order):
        layer, what = parts(entry["name"])
        if before not in (None, layer):
            table.add_section()
        table.add_row("" if layer == before else str(layer), what, *_cells(found, entry))
        before = layer
    console.print(table)
    for line in sentences(found):
        console.print(line)


def _cells(found: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    cells = [" × ".join(map(str, entry["shape"])), *_counts(entry)]
    if found["features"]:
        own = (f for f in found["features"] if entry["name"] in f["names"])
        cells += _counts(next(own))
        cells += [_counts(e)[1] for e in found["outputs"] if e["name"] == entry["name"]]
    return cells


def _counts(entry: Mapping[str, Any]) -> list[str]:
    return [f"{entry['effective_rank']:.1f}", f"{entry['energy_rank']} of {entry['full']}"]


def sentences(found: Mapping[str, Any]) -> list[str]:
    """The means over all matrices and inputs, and what follows from them."""
    weights = _mean_share(found["weights"])
    lines = [
        "90 % of the energy (sum of squared singular values) of a weight matrix of "
        f"{found['model']} lies in {percent(weights)} of its dimensions, on average."
    ]
    if not found["features"]:
        lines.append("Features were not analysed: they need texts, from --task or --text.")
        return lines + probe_sentences(found)
    features = _mean_share(found["features"])
    lines.append(
        f"For its features, the inputs of these matrices on {found['tokens']:,} tokens of "
        f"{found['source']}, it is {percent(features)}; for the outputs of the matrices, minus "
        f"their mean, {percent(_mean_share(found['outputs']))}."
    )
    if features < weights / 2:
        lines.append(
            "The features have a far lower rank than the weights: a factorization that preserves "
            "the outputs (weighted by the features) can compress more than one that preserves "
            "the weights."
        )
    if found["tokens"] < 4 * max(f["shape"][1] for f in found["features"]):
        lines.append(
            "There are few tokens for features this wide, so their rank looks lower than it is: "
            "give more texts."
        )
    return lines + probe_sentences(found)


def _mean_share(entries: list[Mapping[str, Any]]) -> float:
    return float(np.mean([entry["energy_rank"] / entry["full"] for entry in entries]))


def write_spectra(found: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write analysis.json, spectra.png and analysis.html into `folder`; returns their paths."""
    paths = [folder / name for name in ("analysis.json", "spectra.png", "analysis.html")]
    write_json(paths[0], found)
    with atomic_write(paths[1]) as temporary:
        png(temporary, 1000 if found["features"] else 560, 620, partial(plots.draw_all, found))
    with atomic_write(paths[2]) as temporary:
        temporary.write_text(page(found), encoding="utf-8")
    return paths


def page(found: Mapping[str, Any]) -> str:
    """The page as text; it loads nothing from anywhere."""
    first, *rest = sentences(found)
    heads = ["Matrix", *(_HEADS if found["features"] else _HEADS[:3])]
    rows = [
        [f"layer {parts(e['name'])[0]}, {parts(e['name'])[1]}", *_cells(found, e)]
        for e in sorted(found["weights"], key=order)
    ]
    main = el(
        "main",
        el("header", el("h1", f"Spectra: {found['model']}"), el("p", first, class_="lead")),
        [el("p", line) for line in rest],
        el("section", el("h2", "Singular values"), _curves(found)),
        el("section", el("h2", "Where the energy is"), _heat(found)),
        tenths_section(found),
        against_section(found),
        el("section", el("h2", "Statistics of the entries"), entries_section(found)),
        el("section", el("h2", "Every matrix"), html_table(heads, rows, class_="stack")),
        el("section", el("h2", "Glossary"), _words()),
    )
    return document(f"Spectra of {found['model']}", main)


def _curves(found: Mapping[str, Any]) -> Html:
    def draw(entries: Any, drawn: Any) -> None:
        plots.draw_curves(drawn.subplots(), entries, "")

    rows = [(found["weights"], "weights", "Weights")]
    if found["features"]:
        rows.append((found["features"], "features", "Features, the inputs of these matrices"))
    pictures = (
        figure(f"{title}.", _picture(name, f"Singular values of the {name}", 320, partial(draw, e)))
        for e, name, title in rows
    )
    text = (
        "Lines are medians over the layers; bands go from the minimum to the maximum. A line "
        "that falls early means that a low rank is a good approximation."
    )
    return join(el("p", text), *pictures)


def _heat(found: Mapping[str, Any]) -> Html:
    def draw(entries: Any, drawn: Any) -> None:
        plots.draw_heat(drawn, drawn.subplots(), entries, "")

    rows = [(found["weights"], "weights-heat", plots.WEIGHTS_HEAT)]
    if found["features"]:
        rows.append((found["features"], "features-heat", plots.FEATURES_HEAT))
        rows.append((found["outputs"], "outputs-heat", plots.OUTPUTS_HEAT))
    return join(
        *(
            figure(f"{title}, as a share of all.", _picture(name, title, 250, partial(draw, e)))
            for e, name, title in rows
        )
    )


def _picture(name: str, label: str, height: float, draw: Callable[[Any], None]) -> Html:
    """Drawn for a wide screen and for a narrow one."""
    return responsive(
        svg(name, label, 620, height, draw), svg(f"{name}-narrow", label, 360, 300, draw)
    )


def _words() -> Html:
    words = {
        "Effective rank": "exp of the entropy of the singular values as shares of their sum: the "
        "number of directions in use. It is between 1 and the smaller side of the matrix.",
        "90 % energy": "the number of singular values, largest first, that hold 90 % of the sum of "
        "squares: the rank at which a tenth of the energy is lost.",
        "Features": "the inputs of a matrix, one row for each token except padding. Their singular "
        "values are the square roots of the eigenvalues of the second moment E[x xᵀ]; the mean is "
        "not subtracted. Values below a thousandth of the largest are lost in rounding.",
        "Outputs": "the outputs of a matrix on the same tokens, before the bias and minus their "
        "mean.",
    }
    items = [el("div", el("dt", word), el("dd", meaning)) for word, meaning in words.items()]
    return el("dl", items, class_="columns")

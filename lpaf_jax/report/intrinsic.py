"""What `lpaf intrinsic` shows: lines for a terminal, a curve, a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lpaf_jax.core.files import atomic_write
from lpaf_jax.report.facts import percent
from lpaf_jax.report.html import document
from lpaf_jax.report.markup import el, figure, responsive, table
from lpaf_jax.report.measures import MEASURES
from lpaf_jax.report.svg import BLUE, GREEN, MUTED, plain_numbers, svg

Found = Mapping[str, Any]
_KINDS = {
    "did": "one random map for all parameters (DID)",
    "said": "one random map and one scale per tensor (SAID)",
}


def lines(found: Found) -> list[str]:
    """What was found, in sentences."""
    show = MEASURES[found["metric"]].show
    told = [
        f"Fine-tuning all {found['numbers']:,} parameters: {show(found['full'])} on validation.",
        f"In a random subspace d numbers move all of them: {_KINDS[found['kind']]}.",
    ]
    gain = "of the gain over always giving the most frequent answer"
    for key, what in (("d90", "of this score"), ("d90_of_gain", gain)):
        if found[key] is not None:
            told.append(f"Nine tenths {what} are reached with d = {found[key]:,} or less.")
        elif key == "d90" or found["majority"] is not None:
            told.append(f"No d that was tried reaches nine tenths {what}.")
    return told


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{x:g}" for x in values)


def write_intrinsic(found: Found, folder: Path) -> Path:
    """Write intrinsic.html into `folder`; returns its path."""
    measure, scores = MEASURES[found["metric"]], found["scores"]
    scale = 1 if measure.correlation else 100

    def draw(drawn: Any, columns: int) -> None:
        axes = drawn.subplots()
        targets, majority = found["targets"], found["majority"]
        levels: list[tuple[str, float, str, Any]] = [
            ("fine-tuning", found["full"], MUTED, "-"),
            ("nine tenths", targets["score"], GREEN, "-"),
        ]
        if majority is not None:
            levels.append(("nine tenths of the gain", targets["gain"], GREEN, (0, (5, 2))))
            levels.append(("majority", majority, MUTED, (0, (1, 2))))
        values = [scale * score for score in scores.values()]
        axes.plot([int(d) for d in scores], values, color=BLUE, marker="o", label="subspace")
        for name, level, colour, dash in levels:
            axes.axhline(scale * level, color=colour, linewidth=1, linestyle=dash, label=name)
        axes.set_xscale("log")
        plain_numbers(axes.xaxis)
        axes.set_xlabel("d, trained parameters")
        axes.set_ylabel(measure.titled)
        drawn.legend(loc="outside lower center", ncols=columns, handlelength=2.8)

    first, *rest = lines(found)
    rows = [
        [f"{int(d):,}", measure.show(score), percent(score / found["full"])]
        for d, score in scores.items()
    ]
    label = "Validation score by dimension"
    curve = responsive(
        svg("curve", label, 620, 340, lambda drawn: draw(drawn, columns=3)),
        svg("curve-narrow", label, 360, 320, lambda drawn: draw(drawn, columns=2)),
    )
    settings = found["settings"]
    rates, seeds = (sorted({cell[i] for cell in found["cells"]}) for i in (1, 2))
    about = (
        "The intrinsic dimension (d90) is the least d that reaches nine tenths of fine-tuning. It "
        "is an upper bound: another subspace might do with less. Where there are few classes, "
        "guessing comes near nine tenths of the score, and the gain over the most frequent class "
        f"says more. Every training: {settings['finetune_epochs']:g} epochs; learning rate "
        f"{settings['finetune_lr']:g} for all parameters, in a subspace the one that moves them as "
        f"far, times {_listed(rates)}; {'seed' if len(seeds) == 1 else 'seeds'} {_listed(seeds)}."
    )
    title = f"Intrinsic dimension: {settings['model']} on {settings['task']}"
    main = el(
        "main",
        el("header", el("h1", title), el("p", first, class_="lead")),
        [el("p", line) for line in rest],
        el(
            "section",
            el("h2", "Score by dimension"),
            figure("Means over the seeds, each with its best learning rate.", curve),
            table(["d", measure.head, "of fine-tuning"], rows, class_="stack"),
            el("p", about, class_="small"),
        ),
    )
    path = folder / "intrinsic.html"
    with atomic_write(path) as temporary:
        temporary.write_text(document(title, main), encoding="utf-8")
    return path

"""The parts of the page, each a function from what a run recorded to markup or nothing."""

import json
from collections.abc import Mapping
from typing import Any

from lpaf_jax.report import facts, matrix_plots, plots, prose, words
from lpaf_jax.report.facts import Metrics
from lpaf_jax.report.logs import Log
from lpaf_jax.report.markup import Child, Html, details, el, figure, join, table

Analysis = Mapping[str, Any]


def outcome(metrics: Metrics) -> Html:
    """The result in two sentences, and what to know before quoting it."""
    notes = words.verdicts(metrics)
    listed = el("ul", [el("li", note) for note in notes]) if len(notes) > 1 else el("p", notes)
    return join(
        el("p", words.statement(metrics), class_="lead"),
        el("div", listed, class_="notes") if notes else None,
    )


def results(metrics: Metrics) -> Html | None:
    """The headline table and accuracy against size."""
    rows = facts.stages(metrics)
    if not rows:
        return None
    batches = facts.batches(metrics)
    shown = batches[:1] + batches[-1:] if len(batches) > 1 else batches
    heads = ["Stage", "Accuracy", "95 % interval", "Compressible weights", "All weights", "File"]
    heads += [_texts(batch) for batch in shown]
    cells = [
        [
            row.label,
            facts.percent(row.accuracy),
            _range(row.low, row.high),
            facts.percent(row.encoder),
            facts.percent(row.total),
            facts.size(row.bytes),
            *(facts.milliseconds(row.median(batch)) for batch in shown),
        ]
        for row in rows
    ]
    final = next((i for i, row in enumerate(rows) if row.key == "final"), None)
    pictured = [row for row in rows if row.accuracy is not None and row.encoder is not None]
    picture = (
        figure(
            "The further up and to the left, the better. Bars are 95 % intervals; the line "
            "follows the run from stage to stage."
            + (_PRUNED_SIZE if any(row.key == "pruned" for row in pictured) else ""),
            plots.accuracy_against_size(metrics),
        )
        if len(pictured) > 1
        else None
    )
    return join(
        table(heads, cells, class_="stack", emphasis=final),
        el("p", _under_table(metrics), class_="small"),
        picture,
    )


_PRUNED_SIZE = (
    " The pruned model is drawn at full size because its zeros are stored like any other number."
)


def _texts(batch: str) -> str:
    return "Time for 1 text" if batch == "1" else f"Time for {batch} texts"


def _range(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "–"
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def _under_table(metrics: Metrics) -> str:
    text = "A dash means not measured."
    n = facts.number(metrics, "stages", "final", "n") or facts.number(metrics, "data", "test")
    if n:
        text = (
            f"Accuracy is on {facts.count(n)} test examples that were used for nothing else. {text}"
        )
    dense = facts.number(metrics, "params", "dense", "total")
    final = facts.number(metrics, "params", "final", "total")
    if dense and final:
        text += f" All weights: {facts.count(dense)} before, {facts.count(final)} after."
    return text


def steps(metrics: Metrics, analysis: Analysis) -> Html | None:
    """Two sentences on every stage."""
    texts = prose.explanations(metrics, analysis)
    if not texts:
        return None
    return el("dl", [[el("dt", facts.STAGES[k]), el("dd", t)] for k, t in texts.items()])


def speed(metrics: Metrics) -> Html | None:
    """Timings with their spread."""
    rows: list[list[Child]] = []
    compared = {row.batch: row.words for row in words.speeds(metrics)}
    for batch in facts.batches(metrics):
        cells: list[Child] = [f"{batch} text" + ("s" if batch != "1" else "")]
        for stage in ("dense", "final"):
            found = facts.timing(metrics, stage, batch)
            cells.append(facts.milliseconds(found.median if found else None))
            cells.append(_spread(found) if found else "–")
        rows.append([*cells, compared.get(batch, "–")])
    if not rows:
        return None
    length = facts.number(metrics, "latency_ms", "length")
    threads = facts.number(metrics, "latency_ms", "threads")
    about = ["Median time of one forward pass, with the fastest and the slowest"]
    about += [f"texts of {length:.0f} tokens"] if length is not None else []
    about += [f"{threads:.0f} processor threads"] if threads is not None else []
    return join(
        table(["At once", "Dense", "range", "Final", "range", "Final is"], rows, class_="stack"),
        el("p", "; ".join(about) + ".", class_="small"),
    )


def _spread(found: facts.Timing) -> str:
    if found.low is None or found.high is None:
        return "–"
    low = facts.milliseconds(found.low).removesuffix(" ms")
    return f"{low} to {facts.milliseconds(found.high)}"


def training(log: Log) -> Html | None:
    """The training curves."""
    if not log:
        return el("p", "No training log was found beside this run, so there are no curves.")
    return figure(
        "Pale lines are single logged steps, strong lines their moving average. The number in "
        "the second row is the best validation accuracy of each stage. Losses of different "
        "stages need not contain the same terms.",
        plots.training_curves(log),
    )


def matrices(metrics: Metrics, analysis: Analysis) -> Html:
    """What pruning did to the matrices, first-order beside magnitude."""
    if not analysis:
        done = metrics.get("stages") or {}
        left_out = "final" in done and "pruned" not in done
        why = " because the pruning step was left out" if left_out else ""
        return el("p", f"No analysis of the matrices was made in this run{why}.")
    rows = sorted(analysis.get("matrices") or [], key=matrix_plots.order)
    removed = facts.number(analysis, "sparsity")
    share = "the same share" if removed is None else facts.percent(removed, 0)
    intro = (
        f"Two ways to choose which {share} of the weights to remove, compared on this model: "
        "first-order, as the run pruned while it trained, and magnitude, which takes the smallest "
        "weights off the dense model at once. The fewer directions the remaining weights use, "
        "the less a factorization loses."
    )
    if facts.setting(metrics, "criterion") == "magnitude":
        intro = (
            "This run pruned by magnitude while it trained: what is called first-order below is "
            "that pruning, next to magnitude pruning of the dense model at once."
        )
    spectra = [matrix_plots.spectrum(s, i) for i, s in enumerate(analysis.get("spectra") or [])]
    return join(
        el("p", intro),
        el("p", el("strong", _means(analysis))),
        figure(
            "Effective rank: how many directions each matrix really uses. Lower is easier to "
            "factorize. Mind the scale, which need not start at zero.",
            matrix_plots.effective_ranks(rows),
        )
        if rows
        else None,
        el("h3", "Singular values") if spectra else None,
        figure(
            "Each curve is scaled to start at 1; the vertical scale is logarithmic. The faster it "
            "falls, the smaller the rank that is needed.",
            *spectra,
        )
        if spectra
        else None,
        _patterns(analysis),
        _matrix_table(rows),
    )


def _means(analysis: Analysis) -> str:
    dense, first, plain = (
        facts.number(analysis, "mean", key, "effective_rank")
        for key in ("dense", "first_order", "magnitude")
    )
    if first is None or plain is None:
        return "The mean effective ranks were not recorded."
    before = f" Without pruning it is {dense:.0f}." if dense is not None else ""
    text = (
        f"The mean effective rank is {first:.0f} after first-order pruning and {plain:.0f} after "
        f"magnitude pruning.{before}"
    )
    if first < plain:
        return f"{text} First-order pruning leaves {facts.percent(1 - first / plain, 0)} fewer."
    return f"{text} In this run first-order pruning did not leave fewer, against expectation."


def _patterns(analysis: Analysis) -> Html | None:
    items = analysis.get("patterns") or []
    if not items:
        return None
    parts: list[Child] = [el("h3", "Where the remaining weights are")]
    for index, item in enumerate(items):
        rows, columns = item["shape"]
        caption = f"{matrix_plots.short_name(str(item.get('name', '')))}, {rows} × {columns}. "
        if index == 0:
            caption += (
                "White is removed. Stripes are whole rows or columns that were emptied; the "
                "steeper a curve of shares kept, the more a few of them hold all that is left."
            )
        pictures = [matrix_plots.pattern(item, key, index) for key in ("first_order", "magnitude")]
        parts.append(figure(caption, *pictures, matrix_plots.kept_by_line(item, index)))
    return join(parts)


def _matrix_table(rows: list[Mapping[str, Any]]) -> Html | None:
    if not rows:
        return None
    heads = ["Matrix", "shape", *(f"effective rank, {m}" for m in matrix_plots.METHODS.values())]
    pruned = {key: label for key, label in matrix_plots.METHODS.items() if key != "dense"}
    for label in pruned.values():
        heads += [f"kept, {label}", f"empty rows / columns, {label}"]
    body: list[list[Child]] = []
    for row in rows:
        shape = " × ".join(str(extent) for extent in row.get("shape") or [])
        cells: list[Child] = [el("code", str(row.get("name", ""))), shape]
        for key in matrix_plots.METHODS:
            rank = facts.number(row, key, "effective_rank")
            cells.append("–" if rank is None else f"{rank:.1f}")
        for key in pruned:
            kept, *empty = (
                facts.percent(facts.number(row, key, field), 0)
                for field in ("kept", "empty_rows", "empty_columns")
            )
            cells += [kept, " / ".join(empty)]
        body.append(cells)
    return details(f"All {len(rows)} matrices", table(heads, body, class_="compact"))


def seconds(metrics: Metrics) -> Html | None:
    """Where the time of the run went."""
    spent = metrics.get("seconds")
    if not isinstance(spent, Mapping):
        return None
    known = {key: facts.number(spent, key) for key in spent}
    parts = {k: v for k, v in known.items() if v is not None and k != "total"}
    if not parts:
        return None
    longest = max(parts.values()) or 1.0
    rows: list[list[Child]] = []
    for key, value in parts.items():
        width = f"width: {100 * value / longest:.1f}%"
        bar = el("span", class_="bar", style=width)
        rows.append([facts.PHASES.get(key, key), facts.duration(value), bar])
    total = known.get("total") or sum(parts.values())
    text = f"{facts.duration(total)} in all"
    peak = facts.number(metrics, "peak_memory_bytes")
    text += f", at most {facts.size(peak)} of memory." if peak else "."
    return join(table(["Stage", "time", ""], rows, class_="bars"), el("p", text, class_="small"))


def particulars(metrics: Metrics) -> Html:
    """Figures by class, settings, data and versions, closed until asked for."""
    return join(
        _classes(metrics),
        _pairs("Settings of this run", metrics.get("settings")),
        _pairs("Data", metrics.get("data")),
        _pairs("Versions", metrics.get("versions")),
    )


def _classes(metrics: Metrics) -> Html | None:
    rows: list[list[Child]] = []
    for row in facts.stages(metrics):
        entry = metrics["stages"][row.key].get("per_class") or {}
        for name, scores in entry.items():
            values = [facts.number(scores, key) for key in ("precision", "recall", "f1")]
            cells = [facts.percent(v) for v in values]
            rows.append([row.label, str(name), *cells, facts.count(facts.number(scores, "n"))])
    heads = ["Stage", "class", "precision", "recall", "F1", "examples"]
    return details("Figures by class", table(heads, rows)) if rows else None


def _pairs(title: str, values: Any) -> Html | None:
    if not isinstance(values, Mapping) or not values:
        return None
    rows = [
        [el("code", str(name)), el("code", value if isinstance(value, str) else json.dumps(value))]
        for name, value in values.items()
    ]
    return details(title, table(["Name", "value"], rows, class_="plain"))


def glossary() -> Html:
    """The words a newcomer may not know."""
    entries = [el("div", el("dt", word), el("dd", text)) for word, text in prose.GLOSSARY.items()]
    return el("dl", entries, class_="columns")

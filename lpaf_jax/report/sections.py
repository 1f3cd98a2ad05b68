"""The parts of the page, each a function from what a run recorded to markup or nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from lpaf_jax.report import cuts, facts, matrix_names, matrix_plots, plots, prose, words
from lpaf_jax.report.facts import Metrics
from lpaf_jax.report.logs import Log
from lpaf_jax.report.markup import (
    Child,
    Html,
    details,
    el,
    figure,
    formula,
    join,
    responsive,
    table,
)
from lpaf_jax.report.measures import meanings, measures, primary

Analysis = Mapping[str, Any]
NOT_GIVEN = "not given"


def outcome(metrics: Metrics) -> Html:
    """The result in two sentences, and what to know before quoting it."""
    notes = words.verdicts(metrics)
    listed = el("ul", [el("li", note) for note in notes]) if len(notes) > 1 else el("p", notes)
    return join(el("p", words.statement(metrics), class_="lead"), el("div", listed, class_="notes"))


def results(metrics: Metrics) -> Html:
    """The headline table and the primary metric against size."""
    rows = facts.stages(metrics)
    batches = facts.batches(metrics)
    key, measure = primary(metrics)
    interval = "95 % interval" if key == "accuracy" else "95 % interval of the accuracy"
    with_interval = rows["final"].low is not None
    heads = ["Stage", *(each.head for each in measures(metrics).values())]
    heads += [interval] if with_interval else []
    heads += ["Compressible weights", "All weights", "File"]
    heads += [f"Time for {_texts(batch)}" for batch in batches]
    cells = [
        [
            row.label,
            *row.scores,
            *([row.interval] if with_interval else []),
            facts.percent(row.encoder),
            facts.percent(row.total),
            facts.size(row.bytes),
            *(row.median(batch) for batch in batches),
        ]
        for row in rows.values()
    ]
    dense, final = (metrics["params"][key]["total"] for key in ("dense", "final"))
    under = (
        f"{measure.name[0].upper()}{measure.name[1:]} is {_judged_by(metrics)} "
        f"All weights: {dense:,} before, {final:,} after."
    )
    caption = (
        "Up and to the left is better. Bars are 95 % intervals; arrows show where the size "
        "changes. For stages of the same size, the narrower bar is the later one."
        if key == "accuracy"
        else f"{'Down' if measure.less else 'Up'} and to the left is better. Arrows show "
        "where the size changes."
    )
    if measure.less:
        caption += " The vertical scale is logarithmic."
    if any(not entry["shrinks"] and key != "dense" for key, entry in metrics["described"].items()):
        caption += (
            " The pruned model is drawn at full size, as its zeros are stored like any other "
            "weight."
        )
    under += f" {rounded}" if (rounded := words.in_four_bits(metrics)) else ""
    return join(
        table(heads, cells, class_="stack", emphasis=list(rows).index("final")),
        el("p", under, class_="small"),
        figure(
            caption,
            responsive(
                plots.score_against_size(metrics),
                plots.score_against_size(metrics, narrow=True),
            ),
        ),
    )


def _judged_by(metrics: Metrics) -> str:
    data = metrics["data"]
    if facts.is_trained(metrics):
        return (
            f"on {data['test']:,} test {facts.units(metrics)} that were used for nothing else. A "
            "dash means not measured."
        )
    text = f"on {data['judged_tokens']:,} tokens of {facts.judged_by(metrics)}"
    if facts.is_flattered(metrics):
        return f"{text}, to which the factors were fitted."
    return f"{text}, which was used for nothing else."


def _texts(batch: str) -> str:
    return f"{batch} text" + ("s" if batch != "1" else "")


def steps(metrics: Metrics) -> Html:
    """Two sentences on every stage."""
    texts = prose.explanations(metrics)
    listed = el("dl", [[el("dt", facts.label(metrics, k)), el("dd", t)] for k, t in texts.items()])
    return join(el("p", formula(prose.origin(metrics))), listed)


def speed(metrics: Metrics) -> Html | None:
    """Timings with their spread."""
    if not facts.batches(metrics):
        return None
    stages = facts.stages(metrics)
    rows: list[list[Child]] = []
    for row in words.speeds(metrics):
        cells: list[Child] = [_texts(row.batch)]
        for stage in ("dense", "final"):
            found = stages[stage].timings[row.batch]
            low = facts.milliseconds(found.min).removesuffix(" ms")
            cells.append(facts.milliseconds(found.median))
            cells.append(f"{low} to {facts.milliseconds(found.max)}")
        rows.append([*cells, row.words])
    latency = metrics["latency_ms"]
    about = (
        "Median time of one forward pass, with the fastest and slowest; texts of "
        f"{latency['length']} tokens; {latency['threads']} processor threads."
    )
    return join(
        table(
            ["At once", "Dense", "Dense, range", "Final", "Final, range", "Final is"],
            rows,
            class_="stack",
        ),
        el("p", about, class_="small"),
    )


def training(metrics: Metrics, log: Log) -> Html | None:
    """The training curves."""
    if not log:
        return None
    measure = primary(metrics)[1]
    pictures = responsive(
        plots.training_curves(metrics, log),
        plots.training_curves(metrics, log, narrow=True),
    )
    caption = (
        "Pale lines are the losses of single steps, each on one batch and therefore noisy; "
        "strong lines are their moving average. The second row shows the validation "
        f"{measure.name} at the end of each epoch and stage; a stage keeps its final weights. "
        "Losses of different stages may contain different terms."
    )
    apart = words.validation_and_test(metrics, log)
    return join(figure(caption, pictures), el("p", apart) if apart else None)


def matrices(metrics: Metrics, analysis: Analysis | None) -> Html | None:
    """What pruning did to the matrices, beside magnitude pruning; or what factorizing did."""
    if analysis is None:
        return cuts.matrices(metrics)
    rows = sorted(analysis["matrices"], key=matrix_names.order)
    intro = (
        f"Two ways to choose which {facts.percent(analysis['sparsity'], 0)} of the weights to "
        "remove, compared on this model: this run's pruning during training, and magnitude "
        "pruning, which removes the smallest weights of the dense model at once, without further "
        "training. The fewer directions the remaining weights use, the less a factorization "
        "loses."
    )
    return join(
        el("p", intro),
        _means(analysis["mean"], rows),
        figure(
            "Effective rank: the number of directions that each matrix effectively uses. Lower "
            "is easier to factorize. The scale may not start at zero. (attn: attention, ff: "
            "feed-forward.)",
            responsive(
                matrix_plots.effective_ranks(rows), matrix_plots.effective_ranks(rows, narrow=True)
            ),
        ),
        el("h3", "Singular values"),
        figure(
            f"Of all {len(rows)} matrices, those whose effective rank this run lowered most, by a "
            "median amount, and least (it may have risen), in this order; in brackets, the "
            "effective rank before and after. Layers are counted from 0. Each curve is scaled to "
            "start at 1; the vertical scale is logarithmic. The faster it falls, the smaller the "
            "rank that is needed.",
            *(
                matrix_plots.spectrum(item, _ranks(rows, item["name"]), i)
                for i, item in enumerate(analysis["spectra"])
            ),
        ),
        el("h3", "Where the remaining weights are"),
        *(
            _pattern(item, _ranks(rows, item["name"]), i)
            for i, item in enumerate(analysis["patterns"])
        ),
        _matrix_table(rows),
    )


def _ranks(rows: list[Mapping[str, Any]], name: str) -> str:
    """`276 → 91`: the effective rank of a matrix before and after pruning."""
    row = next(row for row in rows if row["name"] == name)
    before, after = (row[key]["effective_rank"] for key in ("dense", "pruned"))
    return f"{before:.0f} → {after:.0f}"


def _means(mean: Mapping[str, Mapping[str, float]], rows: Sequence[Mapping[str, Any]]) -> Html:
    """Rank and emptiness, each a mean over the matrices, and what they come to in a sentence."""
    heads = ["Mean of all matrices", "Effective rank", "Directions with 90 % of the energy"]
    heads += ["Empty rows", "Empty columns"]
    names = {
        "dense": "Dense",
        "pruned": "Pruned by this run",
        "magnitude": "Magnitude, on the dense model",
    }
    cells = [
        [
            name,
            *(f"{mean[key][rank]:.0f}" for rank in ("effective_rank", "energy_rank")),
            *(
                facts.percent(mean[key][empty]) if empty in mean[key] else "–"
                for empty in ("empty_rows", "empty_columns")
            ),
        ]
        for key, name in names.items()
    ]
    first, plain, dense = (mean[key]["effective_rank"] for key in ("pruned", "magnitude", "dense"))
    text = (
        f"The mean effective rank after pruning is {_beside(first, plain)} that after magnitude "
        f"pruning and {_beside(first, dense)} that of the dense model; it fell in "
        # A mean may be the work of a few.
        f"{sum(_fell(row) for row in rows)} of {len(rows)} matrices."
    )
    return join(el("p", el("strong", text)), table(heads, cells, class_="stack", emphasis=1))


def _fell(row: Mapping[str, Any]) -> bool:
    return bool(row["pruned"]["effective_rank"] < row["dense"]["effective_rank"])


def _beside(one: float, other: float) -> str:
    change = one / other - 1
    if abs(change) < 0.005:
        return "equal to"
    return f"{facts.percent(abs(change), 0)} {'below' if change < 0 else 'above'}"


def _pattern(item: Mapping[str, Any], ranks: str, index: int) -> Html:
    rows, columns = item["shape"]
    caption = f"{matrix_names.short_name(item['name'])}, {rows} × {columns}, ".capitalize()
    caption += f"effective rank {ranks}. "
    if index == 0:
        caption += (
            "Chosen as above, among the square matrices. White is removed. Pale stripes are rows "
            "or columns with few weights left; the steeper a curve of shares kept, the more of "
            "the remaining weights are in a few of them."
        )
    pictures = [matrix_plots.pattern(item, key, index) for key in ("pruned", "magnitude")]
    return figure(caption, *pictures, matrix_plots.kept_by_line(item, index))


def _matrix_table(rows: list[Mapping[str, Any]]) -> Html:
    heads = ["Matrix", "shape", *(f"effective rank, {m}" for m in matrix_plots.METHODS.values())]
    pruned = {key: label for key, label in matrix_plots.METHODS.items() if key != "dense"}
    for label in pruned.values():
        heads += [f"kept, {label}", f"empty rows / columns, {label}"]
    body: list[list[Child]] = []
    for row in rows:
        shape = " × ".join(str(extent) for extent in row["shape"])
        cells: list[Child] = [el("code", row["name"]), shape]
        cells += [f"{row[key]['effective_rank']:.1f}" for key in matrix_plots.METHODS]
        for key in pruned:
            kept, *empty = (
                facts.percent(row[key][field], 0)
                for field in ("kept", "empty_rows", "empty_columns")
            )
            cells += [kept, " / ".join(empty)]
        body.append(cells)
    return details(f"All {len(rows)} matrices", table(heads, body, class_="compact"))


def seconds(metrics: Metrics) -> Html:
    """Where the time of the run went."""
    spent = dict(metrics["seconds"])
    total = spent.pop("total")
    longest = max(*spent.values(), 0.01)
    rows: list[list[Child]] = []
    for key, value in spent.items():
        bar = el("span", class_="bar", style=f"width: {100 * value / longest:.1f}%")
        rows.append([facts.phase(metrics, key), facts.duration(value), bar])
    text = f"{facts.duration(total)} in all."
    trained = facts.is_trained(metrics)
    taken = [facts.label(metrics, key) for key in metrics["stages"] if key not in spent]
    if taken and trained:
        names = ", ".join(taken).lower()
        text += f" Not counted (reused from another run, or time unknown): {names}."
    if peak := metrics.get("peak_memory_bytes"):
        text += (
            f" Peak memory: {facts.size(peak)} (of work that was interrupted, only the process "
            "that finished it is counted)."
        )
    if not trained:  # of one stage there is nothing to compare
        return el("p", text)
    return join(table(["Stage", "Time", ""], rows, class_="bars"), el("p", text, class_="small"))


def particulars(metrics: Metrics) -> Html:
    """Figures by class, settings, data and versions, closed until asked for."""
    data = {facts.DATA.get(name, name): _amount(v) for name, v in metrics["data"].items()}
    if not facts.is_trained(metrics):
        data["tokens in a sequence, at most"] = _amount(metrics["length"])
    return join(
        _classes(metrics),
        _command(metrics),
        _pairs("Settings of this run, as options of lpaf compress", _options(metrics)),
        details("Data", table(["What", "How much"], list(data.items()), class_="plain")),
        _pairs("Versions", metrics["versions"]),
    )


def _amount(value: float) -> str:
    """Data are counted, or are shares."""
    return f"{value:,}" if isinstance(value, int) else facts.percent(value)


def _command(metrics: Metrics) -> Html | None:
    text = metrics.get("command")
    what = "Command of this run, with every setting"
    return None if text is None else details(what, el("p", el("code", text)))


def _options(metrics: Metrics) -> dict[str, str]:
    return dict(as_typed(name, value) for name, value in metrics["settings"].items())


def as_typed(name: str, value: Any) -> tuple[str, str]:
    """A setting and its value as on the command line, where MODEL has no name in front."""
    flag = "MODEL" if name == "model" else f"--{name.replace('_', '-')}"
    if isinstance(value, bool):  # a flag has no value
        return flag, "given" if value else NOT_GIVEN
    if isinstance(value, list | tuple):
        return flag, " ".join(str(item) for item in value) or NOT_GIVEN
    return flag, NOT_GIVEN if value is None else str(value)


def _classes(metrics: Metrics) -> Html | None:
    if facts.majority(metrics) is None:
        return _answered(metrics)
    rows: list[list[Child]] = []
    for key, entry in metrics["stages"].items():
        for name, scores in entry["per_class"].items():
            shares = [facts.percent(scores[score]) for score in ("precision", "recall", "f1")]
            rows.append([facts.label(metrics, key), name, *shares, f"{scores['n']:,}"])
    heads = ["Stage", "Class", "Precision", "Recall", "F1", "Examples"]
    return details("Figures by class", table(heads, rows))


def _answered(metrics: Metrics) -> Html | None:
    """Figures of questions with and without an answer, where the task has both."""
    rows: list[list[Child]] = []
    for key, entry in metrics["stages"].items():
        for part, name in (("HasAns", "with an answer"), ("NoAns", "without an answer")):
            if f"{part}_f1" in entry:
                shares = [facts.percent(entry[f"{part}_{score}"]) for score in ("f1", "exact")]
                rows.append(
                    [facts.label(metrics, key), name, *shares, f"{entry[f'{part}_total']:,}"]
                )
    heads = ["Stage", "questions", "F1", "exact match", "examples"]
    title = "Figures of questions with and without an answer"
    return details(title, table(heads, rows)) if rows else None


def _pairs(title: str, values: Mapping[str, str]) -> Html:
    rows = [[el("code", name), el("code", value)] for name, value in values.items()]
    return details(title, table(["Name", "Value"], rows, class_="plain"))


def glossary(page: str, metrics: Metrics) -> Html:
    """The words a newcomer may not know, as far as the rest of the page uses them."""
    known = meanings(metrics) | {
        w: text for w, text in prose.GLOSSARY.items() if w.lower() in page.lower()
    }
    entries = [el("div", el("dt", word), el("dd", text)) for word, text in known.items()]
    return el("dl", entries, class_="columns")

"""The outcome of a run in plain sentences, the bad news included."""

import math
from typing import NamedTuple

from lpaf_jax.data.metrics import wilson_interval
from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics, Row
from lpaf_jax.report.logs import Log
from lpaf_jax.report.measures import Measure, primary

# Up to five percent, a ratio of two timings or sizes is called no change.
_SAME = 1.05
# From here on, a ratio is told as such.
_MANY = 10
# Times the dense model's perplexity: the model of a real text is then another, and a bad one.
_RUINED = 2.0


def statement(metrics: Metrics) -> str:
    """What was done and what came of it, in two sentences."""
    final = facts.stages(metrics)["final"]
    task, speed = facts.task_name(metrics), _speed(metrics)
    done = f"fine-tuned on {task}"
    if not facts.is_trained(metrics):
        done = f"{facts.what_was_done(metrics)} without training, calibrated on {task}"
    return (
        f"{facts.model_name(metrics)}, {done}, keeps {facts.percent(final.encoder)} of its "
        f"compressible weights ({facts.percent(final.total)} of the whole model): "
        f"{_kept(metrics)}. The file is "
        f"{_file(metrics)}{f', and inference is {speed}' if speed else ''}."
    )


def summary_line(metrics: Metrics) -> str:
    """The outcome on one line of plain text (not terminal markup: names are kept as given)."""
    parts = [_kept(metrics), f"file {_file(metrics)}", *filter(None, [_speed(metrics)])]
    if paired := metrics.get("paired"):
        lost, won = paired["dense_only"], paired["final_only"]
        judged = "" if lost == won else f", which {_judged(paired['p'])}"
        examples = "example" if lost == 1 else "examples"
        parts.insert(1, f"{lost} test {examples} lost and {won} won{judged}")
    compressible, total = (
        facts.percent(metrics[f"{part}_params_ratio"]) for part in ("encoder", "total")
    )
    kept = f"{compressible} of the compressible weights, {total} of all"
    return f"{facts.run_name(metrics)}, {kept}: {'; '.join(parts)}"


def in_four_bits(metrics: Metrics) -> str | None:
    """What rounding to four bits makes of both ends of the run; None where it was not asked."""
    if "nf4" not in metrics:
        return None
    _, measure = primary(metrics)
    dense, final = (
        f"{measure.show(facts.number(metrics['nf4'][end]['score']))} in "
        f"{facts.size(metrics['nf4'][end]['bytes'])}"
        for end in ("dense", "final")
    )
    return (
        f"With the matrices rounded to four bits (NF4), {measure.name} is {dense} before "
        f"compression and {final} after."
    )


def _kept(metrics: Metrics) -> str:
    rows, (_, measure) = facts.stages(metrics), primary(metrics)
    before, reached = (measure.show(rows[key].score) for key in ("dense", "final"))
    if measure.less:
        ends = rows["dense"].score, rows["final"].score
        of = "" if facts.is_trained(metrics) else f" of {facts.judged_by(metrics)}"
        return f"{measure.name}{of} {before} → {reached}{_bracketed(_change(*ends))}"
    kept = metrics["retained"]
    # None: the dense model is worth nothing; a correlation may have turned negative.
    if kept is None or not 0 <= kept <= 1:
        return f"{measure.name} {reached} (before: {before})"
    return f"{facts.percent(kept)} of the {measure.name} kept ({reached} of {before})"


def _change(before: float, after: float) -> str:
    """`6.7 % more` or `1.2 % less`, of two amounts; nothing where one is not finite."""
    ratio = after / before
    if not math.isfinite(ratio) or ratio == 0:
        return ""
    if ratio >= _MANY:
        return f"{ratio:,.0f} times as much"
    return f"{facts.percent(abs(ratio - 1))} {'more' if ratio >= 1 else 'less'}"


def _bracketed(text: str) -> str:
    return f" ({text})" if text else ""


def compared(before: float, after: float, less: str, more: str, same: str) -> str:
    """`1.8× less`, `1.2× more` or `same`, for two positive amounts of which less is better."""
    ratio, word = (before / after, less) if before >= after else (after / before, more)
    if ratio <= _SAME:
        return same
    return f"{ratio:.1f}× {word}"


def _file(metrics: Metrics) -> str:
    dense, final = (metrics["bytes_on_disk"][key] for key in ("dense", "final"))
    words = compared(dense, final, "smaller", "larger", "about as large")
    return f"{words} ({facts.size(dense)} to {facts.size(final)})"


class Speed(NamedTuple):
    """How the final model's time compares with the dense one's at one batch size."""

    batch: str
    words: str
    slower: bool
    overlap: bool

    @property
    def unclear(self) -> bool:
        """Whether the timings overlap, and yet the medians differ."""
        return self.overlap and self.words != "about as fast"


def speeds(metrics: Metrics) -> list[Speed]:
    """One comparison per batch size, smallest batch first."""
    rows = facts.stages(metrics)
    found = []
    for batch, after in rows["final"].timings.items():
        before = rows["dense"].timings[batch]
        words = compared(before.median, after.median, "faster", "slower", "about as fast")
        overlap = before.min <= after.max and after.min <= before.max
        found.append(Speed(batch, words, "slower" in words, overlap))
    return found


def _speed(metrics: Metrics) -> str:
    """At every batch size; nothing where nothing was timed."""
    largest_first = reversed(speeds(metrics))
    # No figure is claimed that the timings do not bear out.
    said: dict[str, list[str]] = {}
    for row in largest_first:
        found = "not clearly faster or slower" if row.unclear else row.words
        said.setdefault(found, []).append(row.batch)
    return " and ".join(f"{found} at batch {' and '.join(of)}" for found, of in said.items())


def validation_and_test(metrics: Metrics, log: Log) -> str | None:
    """Why the two figures differ, where they do by two points or more; None elsewhere.

    They differ at the end of the run, or in how far they moved since a stage before it.
    """
    rows, (key, measure) = facts.stages(metrics), primary(metrics)
    ends = {
        stage: (facts.number(log[part].validation[-1][1]), rows[stage].score)
        for part, stage in facts.logged(metrics).items()
        if part in log and log[part].validation and stage in rows
    }
    if "final" not in ends or not all(math.isfinite(x) for both in ends.values() for x in both):
        return None
    gaps = {stage: measure.gap(*both) for stage, both in ends.items()}
    farthest = max(gaps, key=lambda stage: abs(gaps["final"] - gaps[stage]))
    if max(abs(gaps["final"]), abs(gaps["final"] - gaps[farthest])) < measure.notable:
        return None
    (before, tested_before), (after, tested) = ends[farthest], ends["final"]
    moved = (
        f"ends at {measure.show(after)}, test {measure.name} at {measure.show(tested)}"
        if farthest == "final"
        else f"goes from {measure.show(before)} ({rows[farthest].label.lower()}) to "
        f"{measure.show(after)} (final), test {measure.name} from {measure.show(tested_before)} to "
        f"{measure.show(tested)}"
    )
    points = "a little" if measure.correlation or measure.less else "some points"
    of = facts.units(metrics) if measure.less else "of them"
    text = (
        f"Validation {measure.name} {moved}. The two are measured on different texts, "
        f"{metrics['data']['validation']:,} and {metrics['data']['test']:,} {of}; on other texts, "
        f"either could differ by {points}"
    )
    return f"{text}{_intervals(metrics, after) if key == 'accuracy' else '.'}"


def _intervals(metrics: Metrics, accuracy: float) -> str:
    """The end of the sentence above: how far off each of two accuracies may be."""
    final, n = facts.stages(metrics)["final"], metrics["data"]["validation"]
    low, high = wilson_interval(round(accuracy * n), n)
    assert final.low is not None  # it is a classification
    assert final.high is not None
    far = "" if low <= final.high and final.low <= high else ", though hardly by this much"
    return (
        f"{far}: the 95 % intervals of the final model are {100 * low:.1f} to {100 * high:.1f} % "
        f"(validation) and {final.interval} (test)."
    )


def verdicts(metrics: Metrics) -> list[str]:
    """What a careful reader should know before quoting the headline, worst matters included."""
    rows = facts.stages(metrics)
    return [_difference(metrics, rows["dense"], rows["final"]), *cautions(metrics)]


def cautions(metrics: Metrics) -> list[str]:
    """What is wrong with the outcome, or not to be relied on; nothing where all is well."""
    rows = facts.stages(metrics)
    dense, final, untuned = rows["dense"], rows["final"], facts.untuned(metrics)
    rough = rows[untuned]
    notes = []
    key, measure = primary(metrics)
    if facts.is_flattered(metrics):
        notes.append(
            f"The {measure.name} is measured on the calibration text, to which the factors were "
            "fitted, so it is optimistic. Use --held-out FILE to evaluate on another text."
        )
    common = facts.majority(metrics)
    if common is not None and metrics["stages"]["final"]["accuracy"] <= common:
        better = "better" if key == "accuracy" else "more accurate"
        notes.append(
            f"The final model is no {better} than always answering the most common class "
            f"({facts.percent(common)})."
        )
    if facts.kind_of(metrics) == "regression" and final.score <= 0:
        notes.append("The final model's predictions do not correlate with the labels.")
    if measure.less and not math.isfinite(final.score):
        notes.append(
            f"The {measure.name} of the {_last(metrics)} model is not finite: the model is useless."
        )
    elif measure.less and final.score >= _RUINED * dense.score:
        notes.append(
            f"The {_last(metrics)} model is unusable: its {measure.name} is "
            f"{final.score / dense.score:.1f} times the dense one's. {_mends(metrics)}"
        )
    if untuned != "final" and not measure.better(final.score, rough.score):
        notes.append(
            f"Tuning did not help: the model scored "
            f"{measure.show(rough.score)} before it and {measure.show(final.score)} after."
        )
    if read := metrics.get("read_from"):
        notes.append(
            f"The dense model was read from {facts.size(read['bytes'])} of quantized weights "
            f"({', '.join(read['codes'])}). Sizes here are in bfloat16, the dtype of the "
            f"{_last(metrics)} model: to compare files, quantize it again."
        )
    if metrics["bytes_on_disk"]["final"] >= metrics["bytes_on_disk"]["dense"]:
        notes.append(f"The {_last(metrics)} file is not smaller than the dense model's.")
    for row in speeds(metrics):
        if row.slower:
            notes.append(f"At batch {row.batch} the final model is {row.words} than the dense one.")
        elif row.unclear:
            notes.append(
                f"At batch {row.batch} the fastest and slowest timings of the two models overlap: "
                "the machine was too noisy to be sure of a speed-up."
            )
    return notes


def _mends(metrics: Metrics) -> str:
    """What helps a language model that is ruined."""
    ways = ["keep more (--params)"]
    chosen = metrics["settings"]
    if chosen.get("ranks") in ("uniform", "share"):
        ways.append("set the ranks by the loss (--ranks loss)")
    if not facts.is_trained(metrics):
        if chosen.get("channels") == "none":
            ways.append("drop channels instead of factorizing (--recipe channels)")
        ways.append("train it on a text (--task FILE.txt)")
    text = ", or ".join(ways)
    return f"{text[0].upper()}{text[1:]}."


def _difference(metrics: Metrics, dense: Row, final: Row) -> str:
    """The change in the primary metric, and whether chance alone would bring as much."""
    key, measure = primary(metrics)
    if measure.less:
        return _more_or_less(metrics, measure, dense, final)
    by = "" if key == "accuracy" else f" in {measure.name}"
    text = f"The final model is {measure.apart(final.score - dense.score)} "
    text += "above the dense one" if final.score > dense.score else "below the dense one"
    if final.score == dense.score:
        text = "The final model is as good as the dense one"
        text = text if by else "The final model is as accurate as the dense one"
    text += by
    paired = metrics.get("paired")
    if paired is None:
        return f"{text}."
    lost, won, p = paired["dense_only"], paired["final_only"], paired["p"]
    text += (
        f": it is wrong on {lost} test examples that the dense one gets right, and right on {won} "
        "that the dense one gets wrong."
    )
    if lost == won:
        return text
    return (
        f"{text} If the two were equally good, the probability of a difference this large by "
        f"chance would be {_probability(p)}, so it {_judged(p)}."
    )


def _more_or_less(metrics: Metrics, measure: Measure, dense: Row, final: Row) -> str:
    """The change in an amount of which less is better."""
    last = _last(metrics)
    if final.score == dense.score:
        return f"The {measure.name} of the {last} model equals the dense one's."
    worse = "higher" if final.score > dense.score else "lower"
    change = _bracketed(_change(dense.score, final.score))
    return (
        f"The {measure.name} of the {last} model is {worse} than the dense one's{change}; lower "
        "is better."
    )


def _last(metrics: Metrics) -> str:
    """What the last model is called within a sentence."""
    return facts.label(metrics, "final").lower()


def _probability(p: float) -> str:
    return "less than 0.1 %" if p < 0.001 else facts.percent(p)


def _judged(p: float) -> str:
    """The usual bound of one in twenty."""
    return "is hardly chance" if p < 0.05 else "may be chance"

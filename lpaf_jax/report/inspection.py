"""What `lpaf inspect` shows in a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lpaf_jax.report import facts
from lpaf_jax.report.matrix_names import order, parts
from lpaf_jax.report.measures import MEASURES

_LABELS = 8
_RANK_WIDTH = 9


def print_inspection(found: Mapping[str, Any], console: Console) -> None:
    """What the model is, a row for each matrix that is compressible or factorized, and totals."""
    console.print(_facts(found))
    console.print(_table(found))
    if not found["factorized"]:
        console.print("Nothing is factorized: every compressible matrix is dense.")
        return
    console.print(_legend(found))
    console.print(
        f"Weights kept: {facts.percent(found['encoder_params_ratio'])} of the compressible "
        f"matrices (encoder_params_ratio), {facts.percent(found['total_params_ratio'])} of the "
        "whole model (total_params_ratio)."
    )


def _facts(found: Mapping[str, Any]) -> Table:
    rows = {
        "Folder": found["folder"],
        "Family": f"{found['family']}, {found['head'] or 'no'} head",
        **(_answers(found) if found["head"] == "classification" else {}),
        **_made(found["run"]),
        "Reads": _reads(found["marks"].get("lpaf_reads", {}), found["head"]),
        **{
            key.removeprefix("lpaf_").replace("_", " ").capitalize(): str(value)
            for key, value in found["marks"].items()
            if key != "lpaf_reads"
        },
        "Stored as": ", ".join(found["dtypes"]),
        "On disk": facts.size(found["bytes_on_disk"]),
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows.items():
        if text:
            table.add_row(name, text)
    return table


def _answers(found: Mapping[str, Any]) -> dict[str, str]:
    names, several = found["labels"], found["problem_type"] == "multi_label_classification"
    if found["problem_type"] == "regression" and len(names) > 1:
        return {"Gives": f"{len(names)} numbers (regression)"}
    if len(names) == 1 and not several:
        return {"Gives": "a number (regression)"}
    more = f" and {len(names) - _LABELS} more" if len(names) > _LABELS else ""
    more += "; a text can have several (multi_label_classification)" if several else ""
    return {"Classes": f"{len(names)}: {', '.join(names[:_LABELS])}{more}"}


def _reads(reads: Mapping[str, Any], head: str | None) -> str:
    if "length" not in reads:
        return ""
    if head == "span":
        stride = f" (--doc-stride {reads['stride']})" if "stride" in reads else ""
        return f"questions and contexts, in overlapping windows of {reads['length']} tokens{stride}"
    kind = "pairs of texts" if reads.get("pairs") else "texts"
    return f"{kind}, truncated at {reads['length']} tokens"


def _made(run: Mapping[str, Any] | None) -> dict[str, str]:
    if run is None:
        return {}
    settings, stage = run["settings"], run["stage"]
    by = f"task {settings.get('task', '?')}"
    if "task" in settings and settings["task"] is None:
        by = f"calibrated on {settings.get('calibration', '?')}, without training"
    rows = {
        "Made from": f"{settings.get('model', '?')}, {by}",
        "Stage": f"{stage}, from the run in {run['folder']}",
    }
    if stage not in ("dense", "pruned"):
        names = ("solver", "importance", "ranks")
        weighed = [f"{key} {settings[key]}" for key in names if key in settings]
        seed = f"seed {settings['seed']}" if "seed" in settings else ""
        rows["Recipe"] = ", ".join(x for x in (run.get("recipe"), *weighed, seed) if x)
    if "scores" in run:
        measure = MEASURES[run["metric"]]
        scores = (f"{s} {measure.show(facts.number(x))}" for s, x in run["scores"].items())
        of = f" ({run['judged_by']})" if "judged_by" in run else ""
        rows[measure.name[0].upper() + measure.name[1:]] = ", ".join(scores) + of
    if "finished" in run:
        rows["Finished"] = facts.moment(run["finished"])
    return rows


def _table(found: Mapping[str, Any]) -> Table:
    # Without padding it fits in 80 columns where channels were cut, too.
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=0)
    for head in ("Layer", "Matrix"):
        table.add_column(head, no_wrap=True)
    for head in ("in × out", "Rank", "Numbers", "Kept", "Size", "FLOP"):
        table.add_column(head, justify="right", no_wrap=True)
    rows = sorted(found["matrices"], key=order)
    before = None
    for matrix in rows:
        layer, what = parts(matrix["name"])
        if layer != before and before is not None:
            table.add_section()
        kept = matrix["parameters"] / matrix["dense_parameters"]
        table.add_row(
            str(layer) if layer not in (before, -1) else "",
            what,
            "×".join(map(str, matrix["shape"])),
            _rank(matrix),
            f"{matrix['parameters']:,}",
            facts.percent(kept),
            facts.size(matrix["bytes"]),
            _work([matrix]),
        )
        before = layer
    _totals(table, found)
    return table


def _rank(matrix: Mapping[str, Any]) -> str:
    """What factors it has; of a table their number alone, as there is no room for more."""
    summary: str = matrix["summary"]
    fits = matrix["compressible"] or len(summary) <= _RANK_WIDTH
    return summary if fits else str(matrix["rank"])


def _legend(found: Mapping[str, Any]) -> str:
    """What stands in the column of ranks."""
    text = (
        "Rank: that of the factors; a matrix without factors is full. FLOP: multiplications and "
        "additions for a token, as a share of the dense matrix's."
    )
    if any(matrix["kind"] == "sliced" for matrix in found["matrices"]):
        text += " a×b is what is left of a matrix that has lost channels, and no rank."
    for matrix in found["matrices"]:
        if _rank(matrix) != matrix["summary"]:
            text += f" Of {parts(matrix['name'])[1]}: {matrix['summary']}."
    return text


def _work(matrices: Sequence[Mapping[str, Any]]) -> str:
    """FLOP of matrices that are applied: of a table, rows are looked up."""
    applied = [each for each in matrices if each["compressible"]]
    if not applied:
        return ""
    dense = sum(2 * each["dense_parameters"] for each in applied)
    return f"{100 * sum(each['flop'] for each in applied) / dense:.0f} %"


def _totals(table: Table, found: Mapping[str, Any]) -> None:
    counts, sizes = found["parameters"], found["bytes"]
    rest, rest_dense = (counts[f"total{end}"] - counts[f"encoder{end}"] for end in ("", "_dense"))
    whole = sum(sizes.values())
    lines = [
        ("compressible", counts["encoder"], found["encoder_params_ratio"], sizes["matrices"]),
        ("other parameters", rest, rest / max(1, rest_dense), sizes["rest"]),
        ("whole model", counts["total"], found["total_params_ratio"], whole),
    ]
    table.add_section()
    for name, numbers, kept, size in lines:
        cells = ["", name, "", "", f"{numbers:,}", facts.percent(kept), facts.size(size)]
        cells.append(_work(found["matrices"]) if name == "compressible" else "")
        table.add_row(*cells, style="bold" if name == "whole model" else "")

"""The result table a run prints last."""

from rich import box
from rich.table import Table

from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics, Stage


def result_table(metrics: Metrics) -> Table:
    """One row per stage; fits a terminal of 80 columns.

    Columns without any figure are left out. `summary_line` says which run it is.
    """
    batches = facts.batches(metrics)
    rows = facts.stages(metrics)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("Stage", no_wrap=True)
    columns = {
        "Accuracy": [facts.percent(row.accuracy) for row in rows],
        "95 % interval": [_interval(row) for row in rows],
        "Weights": [facts.percent(row.encoder) for row in rows],
        "File": [facts.size(row.bytes) for row in rows],
        **{
            f"Batch {batch}": [facts.milliseconds(row.median(batch)) for row in rows]
            for batch in (batches[:1] + batches[-1:] if len(batches) > 1 else batches)
        },
    }
    filled = {head: cells for head, cells in columns.items() if any(c != "–" for c in cells)}
    for head in filled:
        table.add_column(head, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        style = "bold" if row.key == "final" else ""
        table.add_row(row.label, *(cells[index] for cells in filled.values()), style=style)
    return table


def _interval(row: Stage) -> str:
    if row.low is None or row.high is None:
        return "–"
    return f"{100 * row.low:.1f} to {100 * row.high:.1f}"

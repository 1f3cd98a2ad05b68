"""The result table a run prints last."""

from rich import box
from rich.table import Table

from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics


def result_table(metrics: Metrics) -> Table:
    """One row per stage; fits a terminal of 80 columns. `summary_line` says which run it is."""
    batches = facts.batches(metrics)
    table = Table("Stage", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    heads = ["Accuracy", "95 % interval", "Weights", "File", *(f"Batch {b}" for b in batches)]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for key, row in facts.stages(metrics).items():
        cells = [
            row.label,
            facts.percent(row.accuracy),
            row.interval,
            facts.percent(row.encoder),
            facts.size(row.bytes),
            *(row.median(batch) for batch in batches),
        ]
        table.add_row(*cells, style="bold" if key == "final" else "")
    return table

"""The result table a run prints last."""

import io

from rich import box
from rich.console import Console
from rich.table import Table

from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics
from lpaf_jax.report.words import summary_line


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


def result_text(metrics: Metrics) -> str:
    """The table and what it comes to, as lines of plain text for a log."""
    file = io.StringIO()
    console = Console(
        file=file, width=100, force_terminal=False, color_system=None, highlight=False, markup=False
    )
    console.print(result_table(metrics))
    lines = [line.rstrip() for line in file.getvalue().splitlines() if line.strip()]
    return "\n".join([*lines, summary_line(metrics)])

"""The result table a run prints last."""

import io

from rich import box
from rich.console import Console
from rich.table import Table

from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics
from lpaf_jax.report.measures import measures
from lpaf_jax.report.words import cautions, in_four_bits, summary_line


def result_table(metrics: Metrics) -> Table:
    """One row per stage; fits a terminal of 80 columns. `summary_line` says which run it is.

    The interval of the accuracy is shown where that is all there is to show.
    """
    batches, official = facts.batches(metrics), list(measures(metrics).values())
    rows = facts.stages(metrics)
    alone = len(official) == 1 and rows["final"].low is not None
    table = Table("Stage", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    heads = [measure.head for measure in official] + (["95 % interval"] if alone else [])
    heads += ["Weights", "File", *(f"Batch {b}" for b in batches)]
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for key, row in rows.items():
        cells = [
            row.label,
            *row.scores,
            *([row.interval] if alone else []),
            facts.percent(row.encoder),
            facts.size(row.bytes),
            *(row.median(batch) for batch in batches),
        ]
        table.add_row(*cells, style="bold" if key == "final" else "")
    return table


def print_results(metrics: Metrics, console: Console) -> None:
    """The table, what it comes to, and what to mind about it."""
    console.print(result_table(metrics))
    console.print(summary_line(metrics))
    if rounded := in_four_bits(metrics):
        console.print(rounded)
    for caution in cautions(metrics):
        console.print(f"Caution: {caution}")


def result_text(metrics: Metrics) -> str:
    """The same as lines of plain text, for a log."""
    file = io.StringIO()
    print_results(metrics, Console(file=file, width=1000, color_system=None, markup=False))
    return "\n".join(line.strip() for line in file.getvalue().splitlines() if line.strip())

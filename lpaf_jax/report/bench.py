"""What `lpaf bench` shows in a terminal, and whether there is a gain in one sentence."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from lpaf_jax.report.facts import milliseconds

_NAMES = {"jax": "JAX", "pytorch": "PyTorch"}


def print_benchmark(found: Mapping[str, Any], console: Console) -> None:
    """What is compared, a table for each framework, what was measured, and the verdict last."""
    console.print(f"Compressed: {found['compressed']}", soft_wrap=True)
    console.print(f"Dense: {found['dense'] or 'random weights of its shape'}", soft_wrap=True)
    for name, of in found["frameworks"].items():
        console.print(_table(name, of))
    console.print(_measured(found))
    console.print(verdict(found), style="bold")


def verdict(found: Mapping[str, Any]) -> str:
    """Whether there is a gain, by framework and batch size, in one sentence."""
    parts = []
    for name, of in found["frameworks"].items():
        words = [f"at batch {size} {_judged(s)}" for size, s in of["speedup"].items()]
        parts.append(f"in {_NAMES[name]} the compressed model is {', '.join(words)}")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _judged(speedup: Mapping[str, float]) -> str:
    least, median, most = (speedup[key] for key in ("least", "median", "most"))
    if least > 1:
        return f"{median:.2f} times as fast ({least:.2f} to {most:.2f})"
    if most < 1:
        return f"slower, {median:.2f} times as fast ({least:.2f} to {most:.2f})"
    return f"not measurably faster, as the ranges overlap ({least:.2f} to {most:.2f})"


def _table(name: str, of: Mapping[str, Any]) -> Table:
    title = f"{_NAMES[name]} {of['version']}, {of['threads']} threads"
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("Batch", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for head in ("median", "least", "most", "examples/s", "Speed-up"):
        table.add_column(head, justify="right", no_wrap=True)
    for size, gain in of["speedup"].items():
        for model in ("dense", "compressed"):
            times = of["times"][model][size]
            first = model == "dense"
            table.add_row(
                size if first else "",
                model,
                *(milliseconds(times[key]) for key in ("median", "min", "max")),
                f"{of['examples_per_second'][model][size]:,.0f}",
                "" if first else f"{gain['median']:.2f} ({gain['least']:.2f}–{gain['most']:.2f})",
            )
    return table


def _measured(found: Mapping[str, Any]) -> str:
    compiled = {
        name: sum(t["first"] for t in found["frameworks"]["jax"]["times"][name].values()) / 1e3
        for name in ("dense", "compressed")
    }
    count = found["repeats"]
    lines = [
        f"Forward passes without dropout, in float32, {found['length']} tokens per text, on "
        f"{found['backend']} ({found['cores']} cores); {count} passes of each model, alternating, "
        "one framework after the other. In brackets: the range from the fastest and slowest "
        "passes of both.",
        "The first passes in JAX, with compilation and not counted above, took "
        f"{compiled['dense']:.1f} s (dense) and {compiled['compressed']:.1f} s (compressed).",
    ]
    if found["dense"] is None:
        lines.append(
            "No dense model was kept: a model of its shape with random weights was timed "
            "instead, which takes as long. Name one with --against DIR."
        )
    if "pytorch" not in found["frameworks"]:
        lines.append("PyTorch is not installed and was not timed.")
    return "\n".join(lines) + "\n"

"""One self-contained page on a run, for a reader who never saw the paper."""

from pathlib import Path
from typing import Any

from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import atomic_write, read_json
from lpaf_jax.report import facts, sections
from lpaf_jax.report.facts import Metrics
from lpaf_jax.report.logs import Log, read_log
from lpaf_jax.report.markup import Html, el, join
from lpaf_jax.report.sections import Analysis
from lpaf_jax.report.style import CSS


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html from the files of the run and return its path.

    Reads metrics.json, and where they exist analysis.json and logs/train.jsonl. The page loads
    nothing from anywhere, and the same files give the same page, byte for byte.

    Raises:
        LpafError: metrics.json is missing or is no JSON object, or the page cannot be written.
    """
    metrics = _object(run_dir / "metrics.json")
    path = run_dir / "analysis.json"
    analysis = _object(path) if path.exists() else None
    page = render(metrics, analysis, read_log(run_dir / "logs" / "train.jsonl"))
    target = run_dir / "report.html"
    with atomic_write(target) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return target


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise LpafError(f"{path} is not a JSON object: it was not written by lpaf")
    return value


def render(metrics: Metrics, analysis: Analysis | None, log: Log) -> str:
    """The page as text. Parts a run has no figures for are left out."""
    title = facts.run_name(metrics)
    outcome = sections.outcome(metrics)
    parts: dict[str, tuple[str, Html | None]] = {
        "results": ("Results", sections.results(metrics)),
        "steps": ("What was done", sections.steps(metrics)),
        "speed": ("Speed", sections.speed(metrics)),
        "training": ("Training", sections.training(metrics, log)),
        "matrices": ("Inside the matrices", sections.matrices(metrics, analysis)),
        "time": (
            "Where the time went" if facts.is_trained(metrics) else "Time",
            sections.seconds(metrics),
        ),
    }
    text = join(outcome, [content for _, content in parts.values()])
    parts["glossary"] = ("Glossary", sections.glossary(text, metrics))
    parts["particulars"] = ("Details", sections.particulars(metrics))
    shown = {key: part for key, part in parts.items() if part[1]}
    nav = el("nav", [el("a", name, href=f"#{key}") for key, (name, _) in shown.items()])
    body = [
        el("section", el("h2", name, id=key), content) for key, (name, content) in shown.items()
    ]
    top = join(el("h1", f"Compression report: {title}"), outcome, nav)
    main = el("main", el("header", top), body, el("footer", _foot(metrics), class_="small"))
    return document(f"{title}: compression report", main)


def document(title: str, main: Html) -> str:
    """A whole page of one `<main>`, in the one style there is; it can load nothing."""
    head = join(
        el("meta", charset="utf-8"),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        # The browser itself refuses to load anything, should a name ever slip through.
        Html(
            '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
            "style-src 'unsafe-inline'; img-src data:\">"
        ),
        el("title", title),
        el("style", Html(CSS)),
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{main}</body></html>\n'


def _foot(metrics: Metrics) -> str:
    about = [f"{key} {metrics[key]}" for key in ("recipe", "seed")]
    return " · ".join(["lpaf-jax", *about, f"finished {facts.moment(metrics['finished'])}"])

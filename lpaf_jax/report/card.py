"""The model card that lies beside the weights."""

import json
import re
from pathlib import Path
from typing import Any

from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics
from lpaf_jax.report.words import statement, verdicts

# Where a short name has a page of its own on the hub: (model id, its licence).
_BASES = {"minilm": ("sentence-transformers/all-MiniLM-L6-v2", "apache-2.0")}
_GLUE = ("sst2", "cola", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")
_DATASETS = {
    "rotten_tomatoes": "cornell-movie-review-data/rotten_tomatoes",
    "imdb": "stanfordnlp/imdb",
    **dict.fromkeys(_GLUE, "nyu-mll/glue"),
}


def model_card(metrics: Metrics) -> str:
    """README.md for a model hub: YAML front matter, then what it is, figures, use and limits.

    Figures that `metrics` does not hold are left out, so a run without timings has a card too.
    A model kept from the middle of a run names its stage: `{"model", "task", "stage"}` is enough.
    """
    stage = str(metrics.get("stage") or "final")
    model, task = _text(facts.model_name(metrics)), _text(facts.task_name(metrics))
    measured = bool(facts.stages(metrics))
    parts = [
        f"---\n{_yaml(_front_matter(metrics))}---",
        f"# {model} on {task}, {_TITLES.get(stage, _text(stage))}",
        _text(statement(metrics)) if measured else None,
        _what(metrics, stage),
        "## Figures" if measured else None,
        _figures(metrics) if measured else None,
        "\n".join(f"- {_text(note)}" for note in verdicts(metrics)) if measured else None,
        "## Use",
        _use(stage),
        "## Limits",
        _limits(metrics),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_TITLES = {
    "dense": "fine-tuned",
    "pruned": "pruned",
    "factorized": "factorized, not yet tuned",
    "final": "factorized",
}


def _what(metrics: Metrics, stage: str) -> str:
    if stage == "dense":
        return (
            "A BERT-style text classifier with all of its weights: what a run of low-rank "
            "factorization (LPAF) starts from and is compared with."
        )
    if stage == "pruned":
        return (
            "A BERT-style text classifier in the middle of low-rank factorization (LPAF): "
            "weights of its query, key, value, attention-output and feed-forward matrices were "
            "set to zero and are stored as zeros, so the file is not smaller."
        )
    rank = facts.number(metrics, "rank")
    size = f", k = {rank:.0f}" if rank is not None else ""
    tuned = "Nothing was tuned since." if stage == "factorized" else "The factors were then tuned."
    return (
        "A BERT-style text classifier made smaller by low-rank factorization (LPAF): every "
        "query, key, value, attention-output and feed-forward matrix of m × n numbers is stored "
        f"as the product of an m × k and a k × n matrix{size}. {tuned} Embeddings, biases, norms "
        "and the classifier are kept whole."
    )


def _use(stage: str) -> str:
    place = "model" if stage == "final" else f"stages/{stage}"
    command = f"lpaf evaluate RUN --stage {stage} --data FILE.tsv"
    first = "An ordinary BERT checkpoint. With `lpaf`:"
    if stage == "final":
        command = "lpaf predict RUN < sentences.txt"
    if stage in ("factorized", "final"):
        first = "The factors are stored as factors, which plain `transformers` cannot read; "
        first += "use `lpaf`:"
    return f"""\
{first}

```
{command}
```

`RUN` is the folder of the run, the one that holds `{place}`. In Python:

```python
from pathlib import Path

from lpaf_jax.models import load_model

model = load_model(Path("RUN/{place}"))
```"""


def _figures(metrics: Metrics) -> str:
    rows = facts.stages(metrics)
    batches = facts.batches(metrics)
    heads = ["stage", "accuracy", "95 % interval", "compressible weights", "all weights", "file"]
    heads += [f"batch {batch}" for batch in batches]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for row in rows:
        low, high = facts.percent(row.low), facts.percent(row.high)
        cells = [row.label.lower(), facts.percent(row.accuracy), f"{low} to {high}"]
        cells += [facts.percent(row.encoder), facts.percent(row.total), facts.size(row.bytes)]
        cells += [facts.milliseconds(row.median(batch)) for batch in batches]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _limits(metrics: Metrics) -> str:
    task = _text(facts.task_name(metrics))
    n = facts.number(metrics, "data", "test") or facts.number(metrics, "stages", "final", "n")
    seed = facts.number(metrics, "seed")
    tested = f"{facts.count(n)} examples of {task}" if n else task
    once = f"one run (seed {seed:.0f})" if seed is not None else "one run"
    return "\n".join(
        [
            f"- It answers the one question it was tuned for, {task}; other text was not tested.",
            f"- Accuracy is from {once} on {tested}, split off by this project: "
            "it is not a figure of a public leaderboard.",
            "- Timings hold for the machine they were taken on.",
            "- It inherits whatever bias the base model and the training texts carry.",
        ]
    )


def _front_matter(metrics: Metrics) -> dict[str, Any]:
    front: dict[str, Any] = {}
    base, licence = _base(str(metrics.get("model") or ""))
    if licence:
        front["license"] = licence
    front["library_name"] = "lpaf-jax"
    front["pipeline_tag"] = "text-classification"
    front["tags"] = ["text-classification", "lpaf", "low-rank", "model-compression", "jax"]
    if base:
        front["base_model"] = base
    dataset = _DATASETS.get(str(metrics.get("task") or ""))
    if dataset:
        front["datasets"] = [dataset]
    front["metrics"] = ["accuracy"]
    accuracy = facts.number(metrics, "stages", "final", "accuracy")
    if dataset and accuracy is not None:
        result = {
            "task": {"type": "text-classification"},
            "dataset": {"type": dataset, "name": facts.task_name(metrics)},
            "metrics": [{"type": "accuracy", "value": accuracy}],
        }
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{facts.model_name(metrics)}-lpaf").strip("-")
        front["model-index"] = [{"name": name, "results": [result]}]
    return front


def _base(model: str) -> tuple[str, str]:
    """Hub id and licence of the base model, empty where it is a local folder or unknown.

    A folder shadows a hub id of the same spelling, as it does when the model is loaded.
    """
    if model in _BASES:
        return _BASES[model]
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", model, flags=re.ASCII) and not (
        Path(model).exists()
    ):
        return model, ""
    return "", ""


def _yaml(value: dict[str, Any]) -> str:
    """One key a line, its value as JSON, which is YAML as long as the text is plain ASCII."""
    return "".join(f"{key}: {json.dumps(item)}\n" for key, item in value.items())


def _text(value: str) -> str:
    """Escape what Markdown or HTML would read as more than text."""
    text = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#])", r"\\\1", text)

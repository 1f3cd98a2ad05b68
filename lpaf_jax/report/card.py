"""The model card that lies beside the weights."""

import json
import re
from pathlib import Path
from typing import Any

from lpaf_jax.data.glue import GLUE, HUB_ID
from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics
from lpaf_jax.report.words import statement, verdicts

# Where a short name has a page of its own on the hub: (model id, its licence).
_BASES = {"minilm": ("sentence-transformers/all-MiniLM-L6-v2", "apache-2.0")}
_DATASETS = {
    "rotten_tomatoes": "cornell-movie-review-data/rotten_tomatoes",
    "imdb": "stanfordnlp/imdb",
    **dict.fromkeys(GLUE, HUB_ID),
}


def model_card(metrics: Metrics) -> str:
    """README.md for a model hub: YAML front matter, then what it is, figures, use and limits.

    A model kept from the middle of a run has no figures yet and names its stage:
    `{"model", "task", "stage", "settings"}` is all that is known of it.
    """
    stage = metrics.get("stage", "final")
    model, task = _text(facts.model_name(metrics)), _text(facts.task_name(metrics))
    parts = [
        f"---\n{_yaml(_front_matter(metrics))}---",
        f"# {model} on {task}, {_TITLES[stage]}",
        *([] if "stage" in metrics else [_text(statement(metrics))]),
        _what(metrics, stage),
        *([] if "stage" in metrics else ["## Figures", _figures(metrics), _notes(metrics)]),
        "## Use",
        _use(metrics, stage),
        "## Limits",
        _limits(metrics),
    ]
    return "\n\n".join(parts) + "\n"


def one_shot_card(found: Metrics) -> str:
    """README.md of a decoder that was compressed without training: what it is, figures, use."""
    name = _text(found["model"] if _base(found["model"])[0] else Path(found["model"]).name)
    settings, ratio = found["settings"], found["encoder_params_ratio"]
    metric = {
        "activations": "so that its outputs on a calibration text change least",
        "fisher": "weighted by the Fisher information of its rows",
        "none": "by plain SVD",
    }[settings["weighting"]]
    front = {
        "base_model": _base(found["model"])[0],
        "library_name": "lpaf-jax",
        "pipeline_tag": "text-generation",
        "tags": ["text-generation", "lpaf", "low-rank", "model-compression", "jax"],
    }
    figures = [
        f"- Compressible weights kept: {ratio:.1%}; all weights: {found['total_params_ratio']:.1%}."
    ]
    if found["perplexity"]:
        dense, small = (found["perplexity"][key] for key in ("dense", "compressed"))
        figures.append(
            f"- Perplexity of a held-out text, in pieces of {found['length']} tokens: "
            f"{dense:.2f} before, {small:.2f} after."
        )
    parts = [
        f"---\n{_yaml({key: value for key, value in front.items() if value})}---",
        f"# {name}, factorized without training",
        "A language model made smaller by low-rank factorization: attention and feed-forward "
        f"matrices are stored as products of two thin ones, each cut {metric}. Nothing was trained "
        "afterwards. Embeddings, biases, norms and the head are kept whole.",
        "## Figures",
        "\n".join(figures),
        "## Use",
        _in_torch("write", "text-generation", '"The film was"'),
        "## Limits",
        "Text unlike the calibration text suffers most. It inherits whatever bias the base model "
        "and its training texts carry.",
    ]
    return "\n\n".join(parts) + "\n"


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
    # The final model is saved a moment before its figures are known.
    size = f", k = {metrics['rank']}" if "rank" in metrics else ""
    tuned = "The factors were then tuned." if stage == "final" else "Nothing was tuned since."
    return (
        "A BERT-style text classifier made smaller by low-rank factorization (LPAF): every "
        "query, key, value, attention-output and feed-forward matrix of m × n numbers is stored "
        f"as the product of an m × k and a k × n matrix{size}. {tuned} Embeddings, biases, norms "
        "and the classifier are kept whole."
    )


def _use(metrics: Metrics, stage: str) -> str:
    place = "model" if stage == "final" else f"stages/{stage}"
    torch = ""
    command = f"lpaf evaluate RUN --stage {stage} --data FILE.tsv"
    first = "An ordinary BERT checkpoint. With `lpaf`:"
    chosen, bare = f', stage="{stage}"', " and leave out the stage"
    text = r'"one text\tand another"' if _reads_pairs(metrics) else '"a moving and funny film"'
    if stage == "final":
        command, chosen, bare = "lpaf predict RUN < sentences.txt", "", ""
    if stage in ("factorized", "final"):
        first = "The factors are stored as factors. With `lpaf`:"
        pair = '{"text": "one text", "text_pair": "and another"}'
        read = pair if _reads_pairs(metrics) else text
        torch = "\n\n" + _in_torch("classify", "text-classification", read)
    return f"""\
{first}

```
{command}
```

In Python:

```python
from pathlib import Path

from lpaf_jax.serve import load_classifier

classifier = load_classifier(Path("RUN"){chosen})
for text, label, probability in classifier.predict([{text}]):
    print(label, probability)
```

`RUN` is the folder of the run, the one that holds `{place}`. Where there is only the folder that \
this card lies in, name that{bare}.{torch}"""


def _in_torch(name: str, task: str, text: str) -> str:
    """How PyTorch uses a factorized folder; `task` is what transformers calls the pipeline."""
    return f"""\
In PyTorch, without `lpaf`:

```python
from transformers import pipeline

{name} = pipeline("{task}", model="FOLDER", trust_remote_code=True)
print({name}({text}))
```

`FOLDER` is the one that this card lies in. `modeling_lpaf.py` beside the card is the code that \
`trust_remote_code` runs: it puts the two factors in the place of each matrix, and asks for \
`torch` and `transformers` alone."""


def _reads_pairs(metrics: Metrics) -> bool:
    given = _given_task(metrics)
    own = metrics.get("settings", {}).get("pair_column") is not None
    return own or (given in GLUE and GLUE[given].pair is not None)


def _figures(metrics: Metrics) -> str:
    batches = facts.batches(metrics)
    heads = ["stage", "accuracy", "95 % interval", "compressible weights", "all weights", "file"]
    heads += [f"batch {batch}" for batch in batches]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for row in facts.stages(metrics).values():
        cells = [row.label.lower(), facts.percent(row.accuracy), row.interval]
        cells += [facts.percent(row.encoder), facts.percent(row.total), facts.size(row.bytes)]
        lines.append(cells + [row.median(batch) for batch in batches])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _notes(metrics: Metrics) -> str:
    return "\n".join(f"- {_text(note)}" for note in verdicts(metrics))


def _limits(metrics: Metrics) -> str:
    task = _text(facts.task_name(metrics))
    lines = [f"It answers the one question it was tuned for, {task}; other text was not tested."]
    if "stage" not in metrics:
        given = _given_task(metrics)
        split = (
            f"its split {GLUE[given].held_out}, as the labels of the test split are not public"
            if given in GLUE
            else "split off by a hash of the text"
        )
        lines += [
            f"Accuracy is from one run (seed {metrics['seed']}) on {metrics['data']['test']:,} "
            f"examples of {task}, {_text(split)}: it is not a figure of a public leaderboard.",
            "Timings hold for the machine they were taken on.",
        ]
    lines.append("It inherits whatever bias the base model and the training texts carry.")
    return "\n".join(f"- {line}" for line in lines)


def _given_task(metrics: Metrics) -> str:
    """The task as it was asked for: a file `sst2.csv` makes a task of the name sst2, too."""
    settings = metrics.get("settings", metrics)
    return str(settings["task"])


def _front_matter(metrics: Metrics) -> dict[str, Any]:
    base, licence = _base(metrics["model"])
    given = _given_task(metrics)
    dataset = _DATASETS.get(given)
    front: dict[str, Any] = {
        "license": licence,
        "library_name": "lpaf-jax",
        "pipeline_tag": "text-classification",
        "tags": ["text-classification", "lpaf", "low-rank", "model-compression", "jax"],
        "base_model": base,
        "datasets": [dataset] if dataset else None,
        "metrics": ["accuracy"],
    }
    if dataset and "stage" not in metrics:
        accuracy = metrics["stages"]["final"]["accuracy"]
        tested = {"type": dataset, "name": f"{facts.task_name(metrics)}, own split"}
        if given in GLUE:
            tested |= {"name": facts.task_name(metrics), "config": given}
            tested["split"] = GLUE[given].held_out
        result = {
            "task": {"type": "text-classification"},
            "dataset": tested,
            "metrics": [{"type": "accuracy", "value": accuracy}],
        }
        name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{facts.model_name(metrics)}-lpaf").strip("-")
        front["model-index"] = [{"name": name, "results": [result]}]
    return {key: value for key, value in front.items() if value}


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

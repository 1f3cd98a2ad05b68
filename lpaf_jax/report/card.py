"""The model card that lies beside the weights."""

import re
from pathlib import Path
from typing import Any

from lpaf_jax.core.files import json_text
from lpaf_jax.data.glue import GLUE, HUB_ID
from lpaf_jax.data.movie_reviews import SOURCES
from lpaf_jax.data.squad import SQUAD
from lpaf_jax.data.tasks import TASK_NAMES
from lpaf_jax.ranks import RANK_RULES
from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics
from lpaf_jax.report.measures import measures, primary
from lpaf_jax.report.words import statement, verdicts
from lpaf_jax.solvers import PRODUCT, SOLVERS

# Where a short name has a page of its own on the hub: (model id, its licence).
_BASES = {
    "minilm": ("sentence-transformers/all-MiniLM-L6-v2", "apache-2.0"),
    "smollm2": ("HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
}
_DATASETS = {
    "rotten_tomatoes": "cornell-movie-review-data/rotten_tomatoes",
    "imdb": "stanfordnlp/imdb",
    **dict.fromkeys(GLUE, HUB_ID),
    **{name: hub_id for name, (hub_id, _) in SQUAD.items()},
}


def model_card(metrics: Metrics) -> str:
    """README.md for a model hub: YAML front matter, then what it is, figures, use and limits.

    A model kept from the middle of a run has no figures yet and names its `stage`: besides there
    is what it is (`model`, `task`, `kind`, `family`, `metrics`) and what was asked for (`settings`,
    `recipe`, `described`).
    """
    stage = metrics.get("stage", "final")
    model, task = _text(facts.model_name(metrics)), _text(facts.task_name(metrics))
    trained = facts.is_trained(metrics)
    on = f"{model} on {task}" if trained else model
    untrained = f"{facts.what_was_done(metrics)} without training"
    parts = [
        f"---\n{_yaml(_front_matter(metrics))}---",
        f"# {on}, {_title(metrics, stage) if trained else untrained}",
        *([] if "stage" in metrics else [_text(statement(metrics))]),
        _what(metrics, stage),
        *([] if "stage" in metrics else ["## Figures", _figures(metrics), _notes(metrics)]),
        "## Use",
        _use(metrics, stage),
        "## Limits",
        _limits(metrics),
    ]
    return "\n\n".join(parts) + "\n"


def _title(metrics: Metrics, stage: str) -> str:
    """What was done to the model, within a heading."""
    steps = list(metrics["described"])
    retrained = any(metrics["described"][s]["logs"] for s in steps[steps.index(stage) + 1 :])
    if stage == "final":
        return str(metrics["described"][facts.untuned(metrics)]["label"]).lower()
    name = str(metrics["described"][stage]["label"]).lower()
    name = "fine-tuned" if name == "dense" else name
    return (
        f"{name}, not yet tuned" if metrics["described"][stage]["shrinks"] and retrained else name
    )


def _what(metrics: Metrics, stage: str) -> str:
    """What the model is, by what its stages say of it."""
    described = metrics["described"]
    steps = list(described)[: list(described).index(stage) + 1]
    smaller = [described[s]["card"] for s in steps if described[s]["shrinks"]]
    clause = " ".join(smaller) or described[stage]["card"]
    kind = f"{facts.family_name(metrics)}-style {facts.kind_name(metrics)}"
    return f"A {kind} {_text(clause)} Recipe: {_text(metrics['recipe'])}."


def _use(metrics: Metrics, stage: str) -> str:
    place = "model" if stage == "final" else f"stages/{stage}"
    torch, kind = "", facts.kind_of(metrics)
    file = {"span": "FILE.json", "language": "TEXT.txt"}.get(kind, "FILE.tsv")
    command = f"lpaf evaluate RUN --stage {stage} --data {file}"
    first = f"An ordinary {facts.family_name(metrics)} checkpoint. With `lpaf`:"
    chosen, bare = f', stage="{stage}"', " and omit the stage"
    text = r'"one text\tand another"' if _reads_pairs(metrics) else '"a text of your own"'
    if kind == "span":
        text = r'"{}\t{}"'.format(*_ASKED)
    if stage == "final":
        command, chosen, bare = "lpaf predict RUN < lines.txt", "", ""
        if kind == "language":
            command = f"lpaf generate RUN --prompt {_BEGINNING}\nlpaf evaluate RUN --data {file}"
    if metrics["described"][stage]["shrinks"]:
        if not metrics.get("ordinary"):
            kept = (
                "factors are stored as factors"
                if _has_factors(metrics)
                else "layers are stored with the heads and channels that are left"
            )
            first = f"The {kept}. With `lpaf`:"
        pair = '{"text": "one text", "text_pair": "and another"}'
        read = pair if _reads_pairs(metrics) else text
        torch = "\n\n" + (
            _spans_in_torch(metrics)
            if kind == "span"
            else _in_torch(metrics, "write", "text-generation", _BEGINNING)
            if kind == "language"
            else _in_torch(metrics, "classify", "text-classification", read)
        )
    return f"""\
{first}

```
{command}
```

In Python:

```python
{_PYTHON.get(kind, _PREDICTOR + _LOOPS.get(kind, "")).format(chosen=chosen, text=text)}
```

`RUN` is the folder of the run, which contains `{place}`. If you only have the folder with this \
card, name that folder instead{bare}.{torch}"""


_BEGINNING = '"The first thing to know is"'
_ASKED = "when does the library open?", "The library opens at nine."
_PREDICTOR = """\
from pathlib import Path

from lpaf_jax.evaluation.serve import load_predictor

predictor = load_predictor(Path("RUN"){chosen})
"""
_PYTHON = {
    "language": """\
from pathlib import Path

from lpaf_jax.evaluation.serve import evaluate_file

print(evaluate_file(Path("RUN"), Path("TEXT.txt"){chosen})["perplexity"])"""
}
# What transformers calls a use.
_PIPELINES = {"span": "question-answering", "language": "text-generation"}
# What a model says to one text, printed.
_LOOPS = {
    "classification": (
        "for text, label, probability in predictor.predict([{text}]):\n"
        "    print(label, probability)"
    ),
    "regression": "for text, value, _ in predictor.predict([{text}]):\n    print(value)",
    "span": "for text, answer, score in predictor.predict([{text}]):\n    print(answer, score)",
}


def _in_torch(metrics: Metrics, name: str, task: str, text: str) -> str:
    """How PyTorch uses a folder; `task` is what transformers calls the pipeline."""
    trusted = _trusted(metrics)
    return f"""\
In PyTorch, without `lpaf`:

```python
from transformers import pipeline

{name} = pipeline("{task}", model="FOLDER"{trusted})
print({name}({text}))
```

{_folder(metrics)}"""


def _spans_in_torch(metrics: Metrics) -> str:
    """The same for questions: there is no pipeline for them in transformers 5."""
    trusted = _trusted(metrics)
    return f"""\
In PyTorch, without `lpaf`, for a context that fits in one window:

```python
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

model = AutoModelForQuestionAnswering.from_pretrained("FOLDER"{trusted})
tokenizer = AutoTokenizer.from_pretrained("FOLDER"{trusted})
asked = "{_ASKED[0]}", "{_ASKED[1]}"
inputs = tokenizer(*asked, return_tensors="pt")
found = model(**inputs)
first, last = (scores.argmax().item() for scores in (found.start_logits, found.end_logits))
print(tokenizer.decode(inputs["input_ids"][0, first : last + 1]))
```

{_folder(metrics)}"""


def _trusted(metrics: Metrics) -> str:
    return "" if metrics.get("ordinary") else ", trust_remote_code=True"


def _folder(metrics: Metrics) -> str:
    """Which folder is meant, and what code in it does."""
    here = "`FOLDER` is the folder with this card."
    if metrics.get("ordinary"):
        return here
    does = (
        "replaces each matrix by its factors"
        if _has_factors(metrics)
        else "gives each layer the heads and channels that it has"
    )
    return (
        f"{here} `trust_remote_code` runs `modeling_lpaf.py` from this folder, which {does} and "
        "needs only `torch` and `transformers`."
    )


def _has_factors(metrics: Metrics) -> bool:
    """Whether matrices became factors, and did not only lose heads and channels."""
    settings = metrics.get("settings", {})
    # A rule of one's own may not be registered here.
    rule = RANK_RULES.get(settings.get("ranks", "share"))
    return "solver" in settings and (rule is None or rule.factorizes)


def _reads_pairs(metrics: Metrics) -> bool:
    given = _given_task(metrics)
    own = metrics.get("settings", {}).get("pair_column") is not None
    return own or (given in GLUE and GLUE[given].pair is not None)


def _figures(metrics: Metrics) -> str:
    batches = facts.batches(metrics)
    official = measures(metrics)
    with_interval = "accuracy" in official
    label = "95 % interval" if len(official) == 1 else "95 % interval of the accuracy"
    heads = ["stage", *(measure.name for measure in official.values())]
    heads += [label] if with_interval else []
    heads += ["compressible weights", "all weights", "file"]
    heads += [f"batch {batch}" for batch in batches]
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1)]
    for row in facts.stages(metrics).values():
        cells = [row.label.lower(), *row.scores, *([row.interval] if with_interval else [])]
        cells += [facts.percent(row.encoder), facts.percent(row.total), facts.size(row.bytes)]
        lines.append(cells + [row.median(batch) for batch in batches])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _notes(metrics: Metrics) -> str:
    return "\n".join(f"- {_text(note)}" for note in verdicts(metrics))


def _limits(metrics: Metrics) -> str:
    if not facts.is_trained(metrics):
        return _limits_of_a_text(metrics)
    task = _text(facts.task_name(metrics))
    lines = [f"It was tuned and tested on one task, {task}; other text was not tested."]
    if facts.kind_of(metrics) == "language":
        lines = [f"It was tuned and tested on one text, {task}; other text was not tested."]
    if "stage" not in metrics and metrics["task"] is None:
        name = primary(metrics)[1].name
        lines.append(f"{name[0].upper()}{name[1:]} was measured on {facts.judged_on(metrics)}.")
    elif "stage" not in metrics:
        given = _given_task(metrics)
        split = (
            f", the {GLUE[given].held_out} split, as the labels of the test split are not public"
            if given in GLUE
            else ", the validation split, as the answers of the test split are not public"
            if given in SQUAD and not _is_one_file(metrics)
            else ", split off by a hash of the text"
            if _is_split_by_hash(metrics)
            else ""
        )
        name = primary(metrics)[1].name
        lines += [
            f"{name[0].upper()}{name[1:]} is from one run (seed {metrics['seed']}) on "
            f"{metrics['data']['test']:,} {facts.units(metrics)} of {task}{_text(split)}: it "
            "is not comparable with a public leaderboard.",
            "Timings are valid only for the machine they were measured on.",
        ]
    lines.append("It inherits any bias of the base model and the training texts.")
    return "\n".join(f"- {line}" for line in lines)


def _limits_of_a_text(metrics: Metrics) -> str:
    """The same where there was no task: what the one text means for others."""
    text, judged = (_text(f(metrics)) for f in (facts.task_name, facts.judged_by))
    name = primary(metrics)[1].name
    lines = [
        f"It was fitted to {metrics['data']['calibration_tokens']:,} tokens of one text, {text}, "
        "and not trained afterwards; it may be worse on other kinds of text.",
        f"{name[0].upper()}{name[1:]} was measured on {metrics['data']['judged_tokens']:,} tokens "
        f"of {judged}, in sequences of at most {metrics['length']} (seed {metrics['seed']}): it "
        "is not comparable with a public leaderboard.",
        "It inherits any bias of the base model.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _is_one_file(metrics: Metrics) -> bool:
    """Whether the questions were one file, which was split here."""
    return str(metrics["settings"].get("data")).endswith(".json")


def _given_task(metrics: Metrics) -> str:
    """The task as it was asked for: a file `sst2.csv` makes a task of the name sst2, too."""
    settings = metrics.get("settings", metrics)
    return str(settings["task"])


def _is_split_by_hash(metrics: Metrics) -> bool:
    """Whether the test split is ours; data sets with a name bring their own, but for reviews."""
    task = _given_task(metrics)
    one_file = task in SQUAD and _is_one_file(metrics)
    return task in SOURCES or task not in TASK_NAMES or one_file


def _form(metrics: Metrics) -> str:
    """What was done to the matrices, as hubs call it."""
    solver = metrics.get("settings", {}).get("solver")
    if metrics.get("ordinary") or not _has_factors(metrics):
        return "pruning"
    return (SOLVERS[solver].form if solver in SOLVERS else PRODUCT).tag


def _front_matter(metrics: Metrics) -> dict[str, Any]:
    base, licence = _base(metrics["model"])
    given = _given_task(metrics)
    dataset, official = _DATASETS.get(given), measures(metrics)
    pipeline = _PIPELINES.get(facts.kind_of(metrics), "text-classification")
    ordinary = metrics.get("ordinary", False)
    form = _form(metrics)
    front: dict[str, Any] = {
        "license": licence,
        "library_name": "transformers" if ordinary else "lpaf-jax",
        "pipeline_tag": pipeline,
        "tags": [pipeline, "lpaf", form, "model-compression", "jax"],
        "base_model": base,
        "datasets": [dataset] if dataset else None,
        "metrics": [measure.hub for measure in official.values()],
    }
    if dataset and "stage" not in metrics:
        final = metrics["stages"]["final"]
        own = ", own split" if _is_split_by_hash(metrics) else ""
        tested = {"type": dataset, "name": f"{facts.task_name(metrics)}{own}"}
        if given in GLUE:
            tested |= {"name": facts.task_name(metrics), "config": GLUE[given].config or given}
            tested["split"] = GLUE[given].held_out
        elif given in SQUAD and not _is_one_file(metrics):
            tested |= {"name": facts.task_name(metrics), "split": "validation"}
        result = {
            "task": {"type": pipeline},
            "dataset": tested,
            "metrics": [{"type": m.hub, "value": final[key]} for key, m in official.items()],
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
    return "".join(f"{key}: {json_text(item)}\n" for key, item in value.items())


def _text(value: str) -> str:
    """Escape what Markdown or HTML would read as more than text."""
    text = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|#])", r"\\\1", text)

"""A model folder and a task so small that the whole job takes seconds, and yet can be learnt."""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from filelock import FileLock
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from lpaf_jax.recipes import Recipe, make_recipe
from lpaf_jax.runs.settings import Settings
from lpaf_jax.tasks.options import Options

GOOD = ["bright", "clever", "funny", "lovely", "moving", "superb", "tender", "warm"]
BAD = ["awful", "boring", "clumsy", "dull", "empty", "flat", "stale", "weak"]
NOUNS = ["actor", "camera", "comedy", "drama", "ending", "film", "plot", "script", "story", "tale"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
WORDS = SPECIAL + sorted({*GOOD, *BAD, *NOUNS, "a", "and", "is", "it", "the", "this", "very", "."})

HIDDEN, INNER, LAYERS, POSITIONS = 32, 64, 2, 32
# Six kernels a layer, the rank at a ratio p is floor(p Σmn / Σ(m + n)): 9 at 50 %.
SIDES = LAYERS * (4 * 2 * HIDDEN + 2 * (HIDDEN + INNER))
ENCODER = LAYERS * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)

# Few and large steps; dropout stays on, so that a draw out of place would show. Whatever a preset
# may set is set here: a better default is no reason for a test to fail.
FAST: dict[str, Any] = {
    "params": 0.5,
    "solver": "row",
    "importance": "score",
    "floor": 0.1,
    "criterion": "sensitivity",
    "kept": 0.5,
    "scope": "global",
    "mask_every": 3,
    "finetune_epochs": 2.0,
    "prune_epochs": 2.0,
    "tune_epochs": 2.0,
    "finetune_lr": 3e-3,
    "prune_lr": 1e-3,
    "tune_lr": 1e-3,
    "warmup": 0.1,
    "cooldown": 0.3,
    "weight_decay": 0.01,
    "p_init": 0.5,
    "p_end": 0.7,
    "consistency": 1.0,
    "batch": 8,
    "length": 16,
    "quiet": True,
}


def fast(recipe: Any) -> dict[str, Any]:
    """Those of the settings above that a recipe has, where they are not what makes it."""
    made = recipe if isinstance(recipe, Recipe) else make_recipe(recipe)
    own = made.settings()
    usual = make_recipe("lpaf").settings()
    options = {f.name for f in fields(Options)}
    return {
        name: value
        for name, value in FAST.items()
        if name in options or (name in own and own[name] == usual[name])
    }


def flags(chosen: dict[str, Any]) -> list[str]:
    """Settings as arguments of `lpaf compress`."""
    words = []
    for name, value in chosen.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [flag] if value else []
        elif isinstance(value, tuple | list):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return words


def write_model(folder: Path, seed: int = 0) -> Path:
    """A BERT folder without a head, as pretrained encoders are published."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "bert",
        "vocab_size": len(WORDS),
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": INNER,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_tensors(seed), folder / "model.safetensors")
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """The tokenizer of the tiny words, for a model of any family; 0 is its padding."""
    _tokenizer().save(str(folder / "tokenizer.json"))


def _tensors(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}

    def linear(name: str, n: int, m: int) -> None:
        tensors[f"{name}.weight"] = rng.normal(0, 0.15, (n, m)).astype(np.float32)
        tensors[f"{name}.bias"] = np.zeros(n, np.float32)

    def norm(name: str) -> None:
        tensors[f"{name}.weight"] = np.ones(HIDDEN, np.float32)
        tensors[f"{name}.bias"] = np.zeros(HIDDEN, np.float32)

    for name, rows in (("word", len(WORDS)), ("position", POSITIONS), ("token_type", 2)):
        table = rng.normal(0, 0.3 if name == "word" else 0.05, (rows, HIDDEN))
        tensors[f"embeddings.{name}_embeddings.weight"] = table.astype(np.float32)
    norm("embeddings.LayerNorm")
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        for name in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{name}", HIDDEN, HIDDEN)
        linear(f"{layer}.attention.output.dense", HIDDEN, HIDDEN)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", INNER, HIDDEN)
        linear(f"{layer}.output.dense", HIDDEN, INNER)
        norm(f"{layer}.output.LayerNorm")
    linear("pooler.dense", HIDDEN, HIDDEN)
    return tensors


def _tokenizer() -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return tokenizer


def sentences(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """`count` different (sentence, label) pairs; two adjectives of one kind decide the label."""
    rng = np.random.default_rng(seed)
    found: dict[str, str] = {}
    while len(found) < count:
        label, words = [("negative", BAD), ("positive", GOOD)][len(found) % 2]
        first, second = rng.choice(words, 2, replace=False)
        noun, other = rng.choice(NOUNS, 2, replace=False)
        found.setdefault(f"the {first} {noun} is a very {second} {other} .", label)
    return list(found.items())


def write_table(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([("sentence", "label"), *rows])
    return path


class Tiny(NamedTuple):
    """Where the model and the task lie."""

    model: Path
    data: Path

    def chosen(self, out: Path, **changes: Any) -> dict[str, Any]:
        """Arguments of `compress` for a run of a second or two."""
        given = {"model": self.model, "task": self.data, "out": out}
        return {**given, **fast(changes.get("recipe", "lpaf")), **changes}

    def arguments(self, out: Path, **changes: Any) -> list[str]:
        """The same as words of the command line."""
        chosen = self.chosen(out, **changes)
        return ["compress", str(chosen.pop("model")), *flags(chosen)]


def cut_back(finished: Path, folder: Path, *without: str) -> Path:
    """A copy of a finished run as it was when its last stages, `without`, had not been run."""
    shutil.copytree(finished, folder)
    for name in ("metrics.json", "report.html", "analysis.json"):
        (folder / name).unlink(missing_ok=True)  # what pruning did, where nothing was pruned
    for stage in without:
        shutil.rmtree(folder / ("model" if stage == "final" else f"stages/{stage}"))
    return folder


def fine_tuned(settings: Settings) -> Any:
    """The model that the first stage of a run leaves, without the run around it."""
    from lpaf_jax.core.progress import Progress
    from lpaf_jax.runs.run import Run
    from lpaf_jax.stages import Context
    from lpaf_jax.tasks.inputs import load_inputs
    from lpaf_jax.train import Checkpoints

    job, inputs = Run(settings), load_inputs(settings)
    progress = Progress(job.folder, quiet=True)

    def checkpoints(part: str) -> Checkpoints:
        return Checkpoints(job.checkpoint(part))

    context = Context(inputs, settings.training, progress, (), checkpoints, "finetune")
    return settings.steps[0][1].run(context)[0]


def weights(folder: Path) -> bytes:
    """The final weights, for comparison to the last bit."""
    return (folder / "model" / "model.safetensors").read_bytes()


@contextmanager
def shared(factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder of all workers; the first one to ask makes what is in it."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        yield folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny model and its task."""
    with shared(tmp_path_factory, "tiny") as folder:
        made = Tiny(folder / "bert", folder / "task.csv")
        if not folder.is_dir():
            folder.mkdir()
            write_model(made.model)
            write_table(made.data, sentences(160))
    return made


@pytest.fixture(scope="session")
def finished(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run. Shared by all tests: read it, copy it, never change it."""
    from lpaf_jax.runs.pipeline import compress

    with shared(tmp_path_factory, "finished") as folder:
        if not (folder / "metrics.json").is_file():
            compress(**tiny.chosen(folder))
    return folder


@pytest.fixture
def no_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a test is about something else: timing compiles four forward passes."""
    from lpaf_jax.runs import pipeline

    timing = {size: {"median": 1.0, "min": 1.0, "max": 1.0} for size in ("1", "32")}
    monkeypatch.setattr(
        pipeline, "compare_latency", lambda models, **_: dict.fromkeys(models, timing)
    )


@pytest.fixture(scope="session")
def held_out(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test split of the task, as a file of its own."""
    from lpaf_jax.data import load_task

    task = load_task(str(tiny.data))
    names = [task.label_names[i] for i in task.test.labels]
    path = tmp_path_factory.mktemp("test") / "test.tsv"
    return write_table(path, list(zip(task.test.texts, names, strict=True)))

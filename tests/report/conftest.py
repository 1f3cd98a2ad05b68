"""Synthetic runs: the figures below were made up for these tests and measure nothing."""

import base64
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lpaf_jax.report import write_report
from lpaf_jax.runs.outcome import describe
from lpaf_jax.runs.settings import make_settings

KINDS = (
    ("attention.self.query", (384, 384)),
    ("attention.self.key", (384, 384)),
    ("attention.self.value", (384, 384)),
    ("attention.output.dense", (384, 384)),
    ("intermediate.dense", (384, 1536)),
    ("output.dense", (1536, 384)),
)


def synthetic_stage(correct: int, n: int = 1706) -> dict[str, Any]:
    """Accuracy with its Wilson interval, and figures by class for a test set of two halves."""
    share, z = correct / n, 1.96
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    scores = {"precision": share, "recall": share, "f1": share}
    return {
        "accuracy": share,
        "correct": correct,
        "n": n,
        "interval95": [middle - half, middle + half],
        "per_class": {"negative": {**scores, "n": n // 2}, "positive": {**scores, "n": n // 2}},
    }


def synthetic_timing(median: float) -> dict[str, float]:
    return {"median": median, "min": 0.96 * median, "max": 1.09 * median}


def told(metric: str = "accuracy", ranks: Any = None, **chosen: Any) -> dict[str, Any]:
    """What the stages of a run with these settings say, and its recipe."""
    settings = make_settings("minilm", out="run", **({"task": "rotten_tomatoes"} | chosen))
    return {
        "described": describe(settings, metric, {"all": 128} if ranks is None else ranks),
        "recipe": settings.method.name,
        "about": settings.method.summary,
    }


def without_pruning(metrics: dict[str, Any], recipe: str = "lpaf-without-step-1") -> dict[str, Any]:
    """The same run by a recipe that does not prune."""
    stages = {name: of for name, of in metrics["stages"].items() if name != "pruned"}
    seconds = {name: of for name, of in metrics["seconds"].items() if name != "pruned"}
    return metrics | told(recipe=recipe) | {"stages": stages, "seconds": seconds}


def synthetic_text_metrics(held_out: bool = True) -> dict[str, Any]:
    """A whole synthetic run of a decoder by a text, without a task."""
    shapes = {"attn.c_attn": (768, 2304), "attn.c_proj": (768, 768), "mlp.c_fc": (768, 3072)}
    cuts = [
        {
            "path": f"transformer.h.{layer}.{kind}",
            "shape": list(shape),
            "record": None
            if (kind, layer) == ("attn.c_proj", 0)
            else {"kind": "low_rank", "rank": 384 + 32 * layer},
            "error": 0.01 * (1 + layer),
        }
        for layer in range(6)
        for kind, shape in shapes.items()
    ]
    settings = {
        "model": "/models/distilgpt2",
        "task": None,
        "calibration": "texts/wiki.txt",
        "held_out": "texts/news.txt" if held_out else None,
        "params": 0.8,
    }
    ranks = {cut["path"]: cut["record"]["rank"] for cut in cuts if cut["record"] is not None}
    return {
        "model": "/models/distilgpt2",
        "task": None,
        "kind": "language",
        "family": "gpt2",
        "metrics": ["perplexity"],
        **told("perplexity", ranks, task=None, calibration="texts/wiki.txt"),
        "stages": {"dense": {"perplexity": 48.8}, "final": {"perplexity": 61.0}},
        "retained": None,
        "rank": None,
        "ranks": ranks,
        "encoder_params_ratio": 0.8,
        "total_params_ratio": 0.896,
        "params": {
            "dense": {"encoder": 42467328, "total": 81912576},
            "final": {"encoder": 33973862, "total": 73419110},
        },
        "bytes_on_disk": {"dense": 327674773, "final": 293690000},
        "length": 512,
        "output_energy_lost": 0.035,
        "matrices": cuts,
        "seconds": {"final": 93.4, "total": 93.4},
        "peak_memory_bytes": 1310000000,
        "data": {"calibration_tokens": 65536, "judged_tokens": 32768 if held_out else 4096},
        "judged_by": "held-out text" if held_out else "calibration text",
        "settings": settings,
        "versions": {"python": "3.11.7", "jax": "0.10.2", "flax": "0.12.8"},
        "seed": 0,
        "finished": "2026-01-02T03:04:05Z",
    }


def synthetic_metrics() -> dict[str, Any]:
    """A whole synthetic run of the main recipe at half the compressible weights."""
    return {
        "model": "minilm",
        "task": "rotten_tomatoes",
        **told(preset="quick"),
        "stages": {
            "dense": synthetic_stage(1387),
            "pruned": synthetic_stage(1379),
            "factorized": synthetic_stage(1294),
            "final": synthetic_stage(1367),
        },
        "retained": 1367 / 1387,
        "paired": {"dense_only": 74, "final_only": 54, "p": 0.0926},
        "rank": 128,
        "ranks": {"all": 128},
        "encoder_params_ratio": 0.5,
        "total_params_ratio": 0.7656,
        "params": {
            "dense": {"encoder": 10616832, "total": 22713986},
            "final": {"encoder": 5308416, "total": 17405570},
        },
        "bytes_on_disk": {"dense": 90868376, "final": 64903232},
        "latency_ms": {
            "length": 64,
            "threads": 2,
            "dense": {"1": synthetic_timing(11.7), "32": synthetic_timing(282.0)},
            "final": {"1": synthetic_timing(10.7), "32": synthetic_timing(156.7)},
        },
        "seconds": {
            "dense": 148.2,
            "pruned": 171.4,
            "factorized": 6.3,
            "final": 214.8,
            "evaluate": 12.5,
            "total": 553.2,
        },
        "peak_memory_bytes": 2310000000,
        "data": {"train": 5971, "validation": 853, "test": 1706, "share_cut": 0.0012},
        "settings": {
            "model": "minilm",
            "task": "rotten_tomatoes",
            "preset": "quick",
            "params": 0.5,
            "rank": None,
            "solver": "row",
            "importance": "score",
            "criterion": "first-order",
            "kept": 0.25,
            "mask_every": 10,
            "finetune_epochs": 2.0,
            "quiet": False,
        },
        "versions": {"python": "3.11.7", "jax": "0.10.2", "flax": "0.12.8"},
        "seed": 0,
        "finished": "2026-01-02T03:04:05Z",
    }


def _spectrum(rng: np.random.Generator, rank: int, count: int = 384) -> list[float]:
    """A few outliers, then a slow fall that ends at `rank`: the look of a trained matrix."""
    place = np.arange(count)
    values = 0.5 * np.clip(1 - place / rank, 0, None) ** 0.8 + 0.5 * np.exp(-place / 4)
    values *= np.where(place < rank, 1 + 0.02 * rng.standard_normal(count), 0)
    values = np.sort(np.abs(values))[::-1]
    return (values / values[0]).round(5).tolist()


def _mask(rng: np.random.Generator, shape: tuple[int, int], kept: float, striped: bool) -> str:
    scores = rng.random(shape)
    if striped:
        scores *= rng.gamma(0.6, size=(shape[0], 1)) * rng.gamma(1.5, size=(1, shape[1]))
    mask = scores >= np.quantile(scores, 1 - kept)
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def synthetic_analysis() -> dict[str, Any]:
    """Synthetic matrices in which first-order pruning leaves about 113 directions of 384."""
    rng = np.random.default_rng(0)
    matrices = []
    for layer in range(6):
        for kind, shape in KINDS:
            row: dict[str, Any] = {"name": f"encoder.layer.{layer}.{kind}", "shape": list(shape)}
            for key, rank in (("dense", 318.0), ("pruned", 96.0), ("magnitude", 262.0)):
                value = rank + 8 * layer + 12 * rng.standard_normal()
                row[key] = {"effective_rank": value, "energy_rank": int(0.6 * value)}
                if key != "dense":
                    striped = key == "pruned"
                    row[key] |= {
                        "kept": 0.25 + 0.03 * rng.standard_normal(),
                        "empty_rows": 0.31 if striped else 0.0,
                        "empty_columns": 0.12 if striped else 0.0,
                    }
            matrices.append(row)
    names = ("encoder.layer.0.attention.self.query", "encoder.layer.5.intermediate.dense")
    return {
        "sparsity": 0.75,
        "matrices": matrices,
        "spectra": [
            {
                "name": name,
                "dense": _spectrum(rng, 384),
                "pruned": _spectrum(rng, 240),
                "magnitude": _spectrum(rng, 380),
            }
            for name in (*names, "encoder.layer.3.output.dense")
        ],
        "patterns": [
            {
                "name": name,
                "shape": list(shape),
                "pruned": _mask(rng, shape, 0.25, True),
                "magnitude": _mask(rng, shape, 0.25, False),
            }
            for name, shape in zip(names, ((384, 384), (384, 1536)), strict=True)
        ],
        "mean": {
            key: {
                figure: float(np.mean([m[key][figure] for m in matrices]))
                for figure in matrices[0][key].keys() - {"kept"}
            }
            for key in ("dense", "pruned", "magnitude")
        },
    }


def synthetic_log() -> list[dict[str, Any]]:
    """Rows of a synthetic training log of three stages with three epochs each."""
    rng = np.random.default_rng(1)
    rows: list[dict[str, Any]] = []
    for stage, steps in (("finetune", 372), ("prune", 558), ("tune", 744)):
        for step in range(6, steps + 1, 6):
            at = step / steps
            row = {"stage": stage, "step": step, "steps": steps, "lr": 3e-5 * (1 - at)}
            row["loss"] = 0.28 + 0.4 * np.exp(-4 * at) + 0.06 * rng.standard_normal()
            if stage == "prune":
                row["sparsity"] = 0.75 * (1 - (1 - at) ** 3)
            if stage == "tune":
                row["p"] = max(0.0, 0.5 - at / 1.4)
            rows.append({**row, "seconds_per_step": 0.4})
        # The best is not the last.
        for epoch, accuracy in enumerate((0.77, 0.811, 0.802), start=1):
            at_step = steps * epoch // 3
            rows.append({"stage": stage, "step": at_step, "validation_accuracy": accuracy})
    return rows


def lay_out(folder: Path, metrics: Any, analysis: Any = None, log: Any = None) -> Path:
    """A run folder with the given parts of a run in it."""
    (folder / "metrics.json").write_text(json.dumps(metrics))
    if analysis is not None:
        (folder / "analysis.json").write_text(json.dumps(analysis))
    if log is not None:
        (folder / "logs").mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in log)
        (folder / "logs" / "train.jsonl").write_text(lines)
    return folder


@pytest.fixture
def metrics() -> dict[str, Any]:
    return synthetic_metrics()


@pytest.fixture(params=[True, False], ids=["held-out", "calibration"])
def text_metrics(request: pytest.FixtureRequest) -> dict[str, Any]:
    return synthetic_text_metrics(request.param)


@pytest.fixture
def analysis() -> dict[str, Any]:
    return synthetic_analysis()


@pytest.fixture
def log() -> list[dict[str, Any]]:
    return synthetic_log()


@pytest.fixture
def stage_of() -> Callable[..., dict[str, Any]]:
    return synthetic_stage


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    return partial(lay_out, tmp_path)


@pytest.fixture
def labels() -> Callable[[str], dict[str, tuple[float, float]]]:
    """Places of the texts of a figure, in pixels from its upper left corner."""

    def places(svg: str) -> dict[str, tuple[float, float]]:
        found = re.findall(r'<text [^>]*x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>', svg)
        return {text: (float(x), float(y)) for x, y, text in found}

    return places


@pytest.fixture(scope="session")
def whole_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of the whole synthetic run, drawn once."""
    folder = tmp_path_factory.mktemp("run")
    lay_out(folder, synthetic_metrics(), synthetic_analysis(), synthetic_log())
    return write_report(folder).read_text(encoding="utf-8")

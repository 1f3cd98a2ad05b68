"""Speed of a compressed model beside the dense one, in JAX and in PyTorch."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lpaf_jax.checkpoints.headless import head_in, load_headless
from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.core.files import read_json
from lpaf_jax.core.folders import model_folder, run_of, run_record, stage_folder
from lpaf_jax.core.machine import usable_cpus, versions
from lpaf_jax.evaluation.inspection import inspect_model
from lpaf_jax.evaluation.latency import Prepare, Times, jax_pass, time_in_turns, torch_pass
from lpaf_jax.factors import read_records
from lpaf_jax.models.configs import refuse_quantized
from lpaf_jax.models.families import FAMILIES, Head, family_name

MODELS = ("dense", "compressed")


class Pair(NamedTuple):
    """What is compared; `dense` is None where only its shape is known."""

    dense: Path | None
    compressed: Path


def find_pair(folder: Path, against: Path | None = None) -> Pair:
    """The compressed model of a run, or that `folder` is, and the dense one to compare it with.

    Args:
        folder: of a run or of a compressed model.
        against: of a dense model, or of a run that kept its own; None takes that of the run, or
            the one that a run without a task read, where it still lies there.

    Raises:
        LpafError: a folder is missing, the one is not compressed or the other one not dense, or
            they differ in family or matrices.
    """
    compressed = model_folder(folder)
    run = run_of(compressed)
    # Of fewer heads or channels: an ordinary model, of which only the run knows the dense one.
    narrow = run is not None and bool(run_record(run[0], "metrics.json").get("ordinary"))
    if not narrow and not _factorized(compressed):
        raise LpafError(f"{compressed} is dense: name a compressed model")
    if against is not None:
        own = (against / "config.json").is_file()
        dense = model_folder(against, "final" if own else "dense")
        if _factorized(dense):
            raise LpafError(f"{dense} is compressed: name a dense model with --against")
        if difference := _difference(dense, compressed, shapes=not narrow):
            raise LpafError(
                f"{dense} is not the dense form of {compressed}: {difference}; name another model "
                "with --against"
            )
        return Pair(dense, compressed)
    places = [stage_folder(run[0], "dense"), *_sources(run[0])] if run else []
    there = (place for place in places if (place / "config.json").is_file())
    alike = (
        p for p in there if not _factorized(p) and not _difference(p, compressed, shapes=not narrow)
    )
    own_dense = next(alike, None)
    if own_dense is None and narrow:
        raise LpafError(
            f"{compressed} is an ordinary model of fewer channels, and its dense model is not "
            "here: name it with --against"
        )
    return Pair(own_dense, compressed)


def run_benchmark(
    pair: Pair,
    *,
    batches: tuple[int, ...] = (1, 8, 32),
    length: int | None = None,
    repeats: int = 20,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Time both models in JAX and then, where it is installed, in PyTorch.

    A pass is a forward pass of a batch without dropout, jitted in JAX, under `inference_mode` in
    PyTorch; all tokens are real. The models take turns; compiling is not counted and told apart.
    Where there is no dense folder its weights are drawn, which takes as long.

    Args:
        pair: from `find_pair`.
        batches: batch sizes. length: tokens of a row; None takes 64, or all that the model reads.
        repeats: timed passes of each.
        say: is told what is being done.

    Returns:
        JSON values: `frameworks` holds for each its `times` (see `time_in_turns`), `examples`
        a second at the median, and the `speedup` of the compressed model by batch size: the ratio
        of the medians and the range that the least and the most of both allow.

    Raises:
        LpafError: a model cannot be loaded, or a setting is out of range.
    """
    if not batches or min(batches) < 1:
        least = min(batches, default=None)
        raise SettingError(("batches",), f"has {least}, but each must be at least 1")
    if repeats < 1:
        raise SettingError(("repeats",), f"is {repeats}, but must be at least 1")
    head = head_in(pair.compressed)
    say("loading both models")
    compressed = load_headless(pair.compressed, head)
    dense = _drawn(pair.compressed, head) if pair.dense is None else load_headless(pair.dense, head)
    positions = min(dense.positions, compressed.positions)
    if length is not None and not 1 <= length <= positions:
        raise SettingError(
            ("length",),
            f"is {length}, but must be from 1 to {positions}, the tokens that the models read",
        )
    tokens = length or min(64, positions)

    def measure(passes: Mapping[str, Prepare], version: str, threads: int) -> dict[str, Any]:
        times = time_in_turns(passes, batches=batches, length=tokens, repeats=repeats)
        return {"version": version, "threads": threads} | _compared(times)

    say(f"timing in JAX on {jax.default_backend()}")
    passes = {"dense": jax_pass(dense), "compressed": jax_pass(compressed)}
    frameworks = {"jax": measure(passes, jax.__version__, usable_cpus())}
    del dense, compressed, passes
    if find_spec("torch") is not None:
        import torch

        say("timing in PyTorch")
        twins = _torch_twins(pair, head)
        passes = {name: torch_pass(twin) for name, twin in twins.items()}
        frameworks["pytorch"] = measure(passes, torch.__version__, torch.get_num_threads())
    return {
        "dense": None if pair.dense is None else _from_here(pair.dense),
        "compressed": _from_here(pair.compressed),
        "batches": batches,
        "length": tokens,
        "repeats": repeats,
        "backend": jax.default_backend(),
        "cores": usable_cpus(),
        "frameworks": frameworks,
        "versions": versions(),
    }


def _sources(run: Path) -> list[Path]:
    """Where the model that a run without a task read may lie; nowhere, of one with a task.

    Its path was relative to the folder that --out was relative to, which need not be ours.
    """
    settings = run_record(run, "settings.json")
    if settings.get("task") is not None or not {"model", "out"} <= settings.keys():
        return []
    model, out = Path(settings["model"]).expanduser(), Path(settings["out"])
    beside = Path(*run.parts[: -len(out.parts)])
    return [beside / model, model] if beside / out == run else [model]


def _difference(dense: Path, compressed: Path, shapes: bool = True) -> str | None:
    """In what family or matrix two models differ; None where they are alike.

    Args:
        shapes: whether matrices must have the same shape, and not only the same name.
    """
    one, other = inspect_model(dense), inspect_model(compressed)
    if one["family"] != other["family"]:
        return f"one is of family {one['family']}, the other of {other['family']}"
    own, theirs = (
        {
            m["name"]: tuple(m["shape"]) if shapes else ()
            for m in found["matrices"]
            if m["compressible"]
        }
        for found in (one, other)
    )
    for name in own | theirs:
        if own.get(name) != theirs.get(name):
            words = (" × ".join(map(str, x.get(name, ("absent",)))) for x in (own, theirs))
            return f"{name} is {next(words)} in one and {next(words)} in the other"
    return None


def _factorized(place: Path) -> bool:
    values = read_json(place / "config.json")
    refuse_quantized(values, place)
    return bool(read_records(values, place))


def _drawn(place: Path, head: Head) -> Any:
    values = read_json(place / "config.json")
    family = FAMILIES[family_name(values, str(place))]
    return family.heads[head](family.config(values), jax.random.key(0))


def _from_here(path: Path) -> str:
    """A path as seen from the current folder, if it lies below."""
    whole, here = path.absolute(), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


def _torch_twins(pair: Pair, head: Head) -> dict[str, Any]:
    import torch

    from lpaf_jax.checkpoints.torch_twin import torch_twin

    on_gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    place = pair.dense or pair.compressed
    dense = torch_twin(place, head, timed=True, drawn_dense=pair.dense is None)
    twins = {"dense": dense, "compressed": torch_twin(pair.compressed, head, timed=True)}
    return {name: twin.to(device) for name, twin in twins.items()}


def _compared(times: Times) -> dict[str, Any]:
    """Times, throughput and speed-up by batch size."""
    speedup = {}
    for size, before in times["dense"].items():
        after = times["compressed"][size]
        speedup[size] = {
            "median": before["median"] / after["median"],
            "least": before["min"] / after["max"],
            "most": before["max"] / after["min"],
        }
    examples = {
        name: {size: 1e3 * int(size) / t["median"] for size, t in by_batch.items()}
        for name, by_batch in times.items()
    }
    return {"times": times, "examples_per_second": examples, "speedup": speedup}

"""How many numbers a task really needs: fine-tuning within a random subspace, d by d."""

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.core.machine import versions
from lpaf_jax.core.progress import Progress
from lpaf_jax.data import LESS_IS_BETTER
from lpaf_jax.linalg import Fastfood, fastfood
from lpaf_jax.models import parameters
from lpaf_jax.models.functional import Params
from lpaf_jax.report.intrinsic import write_intrinsic
from lpaf_jax.runs.run import TRAINED
from lpaf_jax.runs.settings import Settings, as_json, make_settings
from lpaf_jax.stages.trainer import Trainer, loop_of, optimizer_of
from lpaf_jax.tasks.inputs import Inputs, fingerprint, first_model, load_inputs
from lpaf_jax.train import Checkpoints, task_loss

Kind = Literal["did", "said"]
DIMENSIONS = tuple(round(10 ** (1 + i / 3)) for i in range(10))
"""Ten steps from 10 to 10,000, each 2.15 times the last."""
RATES = (0.25, 1.0, 4.0)
SHARE = 0.9
_FILE = "intrinsic.json"


class Cell(NamedTuple):
    """A training run.

    Attributes:
        d: how many numbers were trained; None where all of them were.
        rate: of the learning rate that moves the parameters as far as fine-tuning does.
        seed: of the subspace, the batches and the head.
        score: on validation, after the last step.
    """

    d: int | None
    rate: float
    seed: int
    score: float


class Subspace(NamedTuple):
    """θ = θ0 + P θ', or with scales θ_i = θ0_i + λ_i P_i θ' for every tensor i."""

    start: Params
    maps: dict[str, Fastfood]

    def at(self, small: Params) -> Params:
        """The parameters of a model."""
        theta, scales = small["theta"], small.get("scales")
        if scales is None:
            moved = self.maps["all"](theta)
            ends = np.cumsum([x.size for x in self.start.values()])
            steps = dict(zip(self.start, jnp.split(moved, ends[:-1]), strict=True))
        else:
            places = {name: i for i, name in enumerate(self.start)}
            steps = {name: scales[i] * self.maps[name](theta) for name, i in places.items()}
        return {name: x + steps[name].reshape(x.shape) for name, x in self.start.items()}


def subspace(start: Params, d: int, kind: Kind, seed: int) -> tuple[Subspace, Params]:
    """A random subspace through `start`, and the point in it that is `start`.

    Args:
        start: θ0.
        d: how many numbers are trained, of which "said" gives one to every tensor.
        kind: "did", one P for all parameters; "said", one for each tensor, and a scale.
        seed: of the draw.

    Raises:
        LpafError: "said" is given no more numbers than there are tensors, or there are fewer
            parameters than d.

    Source: Li et al., "Measuring the intrinsic dimension of objective landscapes" (2018);
    Aghajanyan et al., "Intrinsic dimensionality explains the effectiveness of language model
    fine-tuning" (2021), for "said".
    """
    total = sum(x.size for x in start.values())
    check_dimension(d, total, len(start), kind)
    key = jax.random.key(seed)
    if kind == "did":
        return Subspace(start, {"all": fastfood(key, d, total)}), {"theta": jnp.zeros(d)}
    free, keys = d - len(start), jax.random.split(key, len(start))
    maps = {
        name: fastfood(each, free, x.size)
        for each, (name, x) in zip(keys, start.items(), strict=True)
    }
    return Subspace(start, maps), {"theta": jnp.zeros(free), "scales": jnp.ones(len(start))}


def check_dimension(d: int, numbers: int, tensors: int, kind: Kind) -> None:
    """Refuse a d that a model of so many parameters has no subspace of; see `subspace`."""
    if d > numbers:
        raise SettingError(("dims",), f"is {d}, more than the model's {numbers} parameters")
    if kind == "said" and d <= tensors:
        raise SettingError(
            ("dims",),
            f"is {d}, which leaves nothing to train besides the scales of {tensors} tensors: give "
            "more, or use --kind did",
        )


def intrinsic_dimension(
    model: Path | str,
    *,
    task: Path | str,
    out: Path | str,
    kind: Kind = "did",
    dims: Sequence[int] | None = None,
    seeds: Sequence[int] = (0, 1),
    rates: Sequence[float] = RATES,
    bisections: int = 2,
    **chosen: Any,
) -> dict[str, Any]:
    """The least d whose subspace reaches nine tenths of fine-tuning (d90), and the way there.

    The model is fine-tuned whole, and then for each d from θ0 within a random subspace of d
    dimensions, with a learning rate that moves the parameters as far, `lr √(D/d)` (over √(tensors)
    where each has a map of its own), times each of the rates; the best on validation counts. As
    there might be a better subspace, this is an upper bound.

    A score of 0.9 times that of fine-tuning is nearly met by guessing where classes are few, so
    that d90 is also told for nine tenths of what fine-tuning gains over the answer that is most
    frequent. After the given d the gap between the largest that fails this and the least that does
    not is halved, by the logarithm; that of d90 itself, where there is no such gap.

    Args:
        model, task: as of `lpaf_jax.compress`.
        out: folder; a search that was stopped there goes on. One with other d, seeds or rates
            takes what has been trained for them, and scores of other d where they are complete.
        kind: see `subspace`.
        dims: the d to try; None: those of `DIMENSIONS` that the model has a subspace of.
        seeds, rates: each d is trained with each of them.
        bisections: how often the gap is halved; 0 leaves it out.
        chosen: options of a run, and `finetune_epochs` and `finetune_lr`.

    Returns:
        what `intrinsic.json` holds: `cells`, `full` (the mean score of fine-tuning), `majority`,
        `targets` (nine tenths of it, and of the gain), `scores` by d, `numbers` (D), `d90` and
        `d90_of_gain`, None where no d reaches it.

    Raises:
        LpafError: see `lpaf_jax.compress` and `subspace`; or the folder holds another search.

    Cost: (len(dims) + bisections) · seeds · rates times that of fine-tuning, and in every step
    O(D log D) for the map and its gradient; 3 to 6 D numbers beside those of fine-tuning.
    """
    settings = make_settings(model, task=task, out=out, recipe="svd", **chosen)
    _check(dims, seeds, rates, bisections)
    inputs = load_inputs(settings)
    if inputs.spec.metrics[0] in LESS_IS_BETTER:
        metric = inputs.spec.metrics[0]
        raise SettingError(
            ("task",), f"is measured by {metric}, for which nine tenths has no meaning"
        )
    folder, progress = Path(out), Progress(Path(out), settings.quiet)
    search = _Search(settings, inputs, folder, progress, kind, list(seeds), list(rates))
    with closing(progress):
        dims = search.fitting(DIMENSIONS) if dims is None else dims
        search.open(list(dims))
        each, subspaces = len(seeds) * len(rates), len(dims) + bisections
        progress.say(
            f"fine-tunes the whole model ({len(seeds)} ×), then within up to {subspaces} subspaces "
            f"({each} × each, and slower): at most {len(seeds) + subspaces * each} trainings"
        )
        for seed in seeds:
            search.cell(None, 1.0, seed)
        tried = sorted(dims)
        for d in tried:
            search.all_of(d)
        for _ in range(bisections):
            middle = search.between(tried)
            if middle is None:
                break
            search.all_of(middle)
            tried.append(middle)
        found = search.write()
    write_intrinsic(found, folder)
    return found


def _check(
    dims: Sequence[int] | None, seeds: Sequence[int], rates: Sequence[float], bisections: int
) -> None:
    if dims is not None and (not dims or min(dims) < 1):
        raise SettingError(("dims",), f"is {list(dims)}: give whole numbers of at least 1")
    if not seeds or len(set(seeds)) < len(seeds):
        raise SettingError(("seeds",), f"is {list(seeds)}: give different seeds")
    if not rates or not all(0 < rate < math.inf for rate in rates):
        raise SettingError(("rates",), f"is {list(rates)}: give numbers above 0")
    if bisections < 0:
        raise SettingError(("bisections",), f"is {bisections}, but must be at least 0")


class _Search:
    """A search in its folder: cells that are there are not run again."""

    def __init__(
        self,
        settings: Settings,
        inputs: Inputs,
        folder: Path,
        progress: Progress,
        kind: Kind,
        seeds: list[int],
        rates: list[float],
    ):
        self._settings, self._inputs, self._folder = settings, inputs, folder
        self._progress, self._kind, self._seeds, self._rates = progress, kind, seeds, rates
        self._metric = inputs.spec.metrics[0]
        start = parameters(first_model(inputs, seeds[0]))
        self._numbers, self._tensors = sum(x.size for x in start.values()), len(start)
        self._cells: list[Cell] = []
        self._header: dict[str, Any] = {}

    def fitting(self, dims: Sequence[int]) -> list[int]:
        """Those of `dims` that the model has a subspace of: scales of SAID take one a tensor."""
        least = self._tensors if self._kind == "said" else 0
        return [d for d in dims if least < d <= self._numbers]

    def open(self, dims: list[int]) -> None:
        """Take up what the folder holds of this search.

        Raises:
            LpafError: it holds another one.
        """
        own = as_json(self._settings)
        # What is read is known by its fingerprint.
        kept = ("model", "task", "length", *TRAINED, "finetune_epochs", "finetune_lr")
        self._header = {
            "kind": self._kind,
            "metric": self._metric,
            "settings": {name: own[name] for name in kept},
            "read": fingerprint(self._inputs)["whole"],
            "numbers": self._numbers,
        }
        for d in dims:
            check_dimension(d, self._numbers, self._tensors, self._kind)
        path = self._folder / _FILE
        if path.is_file():
            found = read_json(path)
            if other := [name for name, value in self._header.items() if found.get(name) != value]:
                raise LpafError(
                    f"{path} belongs to another search (other {', '.join(other)}): name another "
                    "folder with --out"
                )
            self._cells = [Cell(*cell) for cell in found["cells"]]

    def all_of(self, d: int) -> None:
        for seed in self._seeds:
            for rate in self._rates:
                self.cell(d, rate, seed)

    def cell(self, d: int | None, rate: float, seed: int) -> None:
        """Train it, if it is not there, and write it down."""
        if any(cell[:3] == (d, rate, seed) for cell in self._cells):
            return
        name = "all" if d is None else f"{d}"
        self._progress.say(f"d = {name}, learning rate × {rate:g}, seed {seed}")
        score = self._train(d, rate, seed, f"d-{name}-{rate:g}-{seed}")
        self._cells.append(Cell(d, rate, seed, score))
        self.write()

    def _train(self, d: int | None, rate: float, seed: int, name: str) -> float:
        training = self._settings.training._replace(seed=seed)
        model = first_model(self._inputs, seed)
        epochs, lr = self._finetuning()
        told = self._progress.validation
        loop = loop_of(name, training, self._inputs, epochs, model, on_batch=told)
        trainer = Trainer(training, loop, self._progress)
        loss = task_loss(trainer.function(model), self._inputs.kind.objective)
        params, fixed = parameters(model), dict[str, Array]()
        if d is not None:
            lr *= rate * math.sqrt(self._numbers / d)
            lr /= math.sqrt(self._tensors) if self._kind == "said" else 1
            inside, params = subspace(params, d, self._kind, seed)
            fixed, rebuilt = _flat(inside)
            whole, validate = loss, loop.validate
            at = jax.jit(lambda small, fixed: rebuilt(fixed).at(small))

            def loss(small: Params, fixed: Params, batch: Any, keys: Any, step: Array) -> Any:
                return whole(rebuilt(fixed).at(small), {}, batch, keys, step)

            loop = loop._replace(validate=lambda small: validate(at(small, fixed)))
            trainer = Trainer(training, loop, self._progress)
        optimizer, extras = optimizer_of(training, lr, loop.steps)
        checkpoints = Checkpoints(
            self._folder / "checkpoints" / name, stands_for={"seed": seed, "steps": loop.steps}
        )
        state = trainer.run(loss, optimizer, params, fixed, checkpoints, extras)
        score = float(loop.validate(state.params))
        checkpoints.remove()
        return score

    def _finetuning(self) -> tuple[float, float]:
        own = self._settings.method.settings()
        return own["finetune_epochs"], own["finetune_lr"]

    def _full(self) -> float:
        found = [c.score for c in self._cells if c.d is None and c.seed in self._seeds]
        return float(np.mean(found))

    def _scores(self) -> dict[int, float]:
        """By d, of those that are complete: over the seeds the mean of the best of the rates."""
        found = {cell[:3]: cell.score for cell in self._cells}
        scores = {}
        for d in sorted({cell.d for cell in self._cells if cell.d is not None}):
            of = [[found.get((d, rate, seed)) for rate in self._rates] for seed in self._seeds]
            if None not in itertools.chain(*of):
                scores[d] = float(np.mean([max(x for x in best if x is not None) for best in of]))
        return scores

    def between(self, tried: Collection[int]) -> int | None:
        """The d in the middle of the least that meets a target and the largest below it.

        Of those tried alone: what else the folder holds must not change where a search goes.
        """
        scores = {d: score for d, score in self._scores().items() if d in tried}
        gain, plain = self._targets()
        for target in (plain,) if gain is None else (gain, plain):
            met = _least(scores, target)
            below = [] if met is None else [d for d in scores if d < met]
            if met is not None and below:
                middle = round(math.sqrt(below[-1] * met))
                if middle not in (below[-1], met):
                    return middle
        return None

    def _targets(self) -> tuple[float | None, float]:
        """Nine tenths of the gain, where there is one, and of the score."""
        full, majority = self._full(), self._majority()
        return None if majority is None else majority + SHARE * (full - majority), SHARE * full

    def write(self) -> dict[str, Any]:
        scores, (gain, plain) = self._scores(), self._targets()
        found = self._header | {
            "full": self._full(),
            "majority": self._majority(),
            "targets": {"score": plain, "gain": gain},
            "scores": {str(d): score for d, score in scores.items()},
            "d90": _least(scores, plain),
            "d90_of_gain": None if gain is None else _least(scores, gain),
            "cells": [list(cell) for cell in self._cells],
            "versions": versions(),
        }
        write_json(self._folder / _FILE, found)
        return found

    def _majority(self) -> float | None:
        """The score of the most frequent answer; None where answers are not classes."""
        data = self._inputs.validation
        if self._inputs.spec.kind != "classification":
            return None
        labels = np.asarray(data.labels)
        answers = np.zeros((len(labels), int(labels.max()) + 1), np.float32)
        answers[:, np.bincount(labels).argmax()] = 1
        found = data.score(answers)
        return float(found[found["primary"]])


def _least(scores: Mapping[int, float], target: float) -> int | None:
    return next((d for d, score in scores.items() if score >= target), None)


def _flat(inside: Subspace) -> tuple[Params, Callable[[Params], Subspace]]:
    """Its arrays by name, to be given to a step, and the way back."""
    leaves, tree = jax.tree.flatten(inside)
    names = [f"subspace.{i}" for i in range(len(leaves))]

    def rebuilt(fixed: Params) -> Subspace:
        found: Subspace = jax.tree.unflatten(tree, [fixed[name] for name in names])
        return found

    return dict(zip(names, leaves, strict=True)), rebuilt

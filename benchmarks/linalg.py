"""The exact weighted solver against cmfrec, textbook ALS and one SVD, on real importance.

    python benchmarks/linalg.py runs/quick

RUN is any finished or half-finished run that has its dense and pruned stages; real importance is
taken from it once. Time is that to come within 1 % and 0.1 % of the least objective known for a
problem, the best of long runs from several starts and of all solvers, with the start included.
cmfrec starts from its random factors, always the same, textbook ALS from the separable closed form.
What is in the JSON already is not run again. `--table` prints what is there, for the README.
"""

import argparse
import gc
import importlib.util
import itertools
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# With more, the BLAS threads of LAPACK and cmfrec wait for the cores that they themselves hold.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from linalg_scaling import scaling
from provenance import commit
from scores import by_score

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.core.machine import usable_cpus
from lpaf_jax.data import train_batches
from lpaf_jax.importance import fisher_scores
from lpaf_jax.linalg import LowRank, rank_for_ratio, svd, weighted_als, weighted_svd
from lpaf_jax.models import as_function, compressible, parameters
from lpaf_jax.runs.settings import make_settings
from lpaf_jax.stages.prune import pruning_arrays
from lpaf_jax.tasks.inputs import load_inputs
from lpaf_jax.train import cross_entropy

RESULTS = Path(__file__).parent / "results" / "linalg.json"
RATIOS = (0.25, 0.5, 0.16)
SHARES = (1e-2, 1e-3)  # above the best
LONG_RUN = 500  # sweeps
EXAMPLES = 1024  # whose gradients make the Fisher information
_LAYER = "bert.encoder.layer"
# Blocks of kernels that make matrices of the wanted shapes: rows of blocks, by path.
REAL = {
    "384x384": [[f"{_LAYER}.2.attention.self.query.kernel"]],
    "384x1536": [[f"{_LAYER}.3.intermediate.dense.kernel"]],
    "768x768": [
        [f"{_LAYER}.3.attention.self.{name}.kernel" for name in ("query", "key")],
        [
            f"{_LAYER}.3.attention.self.value.kernel",
            f"{_LAYER}.3.attention.output.dense.kernel",
        ],
    ],
    "3072x768": [[f"{_LAYER}.{i}.output.dense.kernel" for i in pair] for pair in ((0, 1), (2, 3))],
}


class Problem(NamedTuple):
    """A matrix, its importance scaled to mean 1, and a rank."""

    name: str
    w: np.ndarray
    importance: np.ndarray
    rank: int


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("--only", default="", help="problems whose name holds this")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds a slow solver gets")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="print the results, measure nothing")
    args = parser.parse_args()
    table = read_json(args.out) if args.out.is_file() else {"problems": []}
    table["command"] = "make bench"
    machine = {"device": jax.devices()[0].device_kind, "threads": usable_cpus()}
    machine |= {"jax": jax.__version__, "commit": commit(), "limit": args.limit}
    if args.table:
        print_table(table)
        return
    if "batch" not in table and not args.only:
        table["batch"] = batch(args.run) | machine
        write_json(args.out, table)
    done = {row["name"] for row in table["problems"]}
    for problem in problems(args.run):
        if problem.name in done or args.only not in problem.name:
            continue
        row = measure(problem, args.limit) | machine
        print(as_line(row), flush=True)
        table["problems"].append(row)
        write_json(args.out, table)
        gc.collect()
    if "scaling" not in table and not args.only:
        table["scaling"] = scaling() | machine
        write_json(args.out, table)


def problems(run: Path) -> Iterator[Problem]:
    matrices = real_importance(run)
    for shape in REAL:
        random = np.random.default_rng(0)
        m, n = map(int, shape.split("x"))
        # A spectrum like that of a trained weight under weights of a heavy tail.
        matrices[f"{shape}/log-normal/w"] = random.normal(size=(m, n)) / np.sqrt(1 + np.arange(n))
        matrices[f"{shape}/log-normal/i"] = np.exp(1.5 * random.normal(size=(m, n)))
    kinds = ("fisher", "score", "log-normal")
    for ratio, shape, kind in itertools.product(RATIOS, REAL, kinds):
        w, weight = (matrices[f"{shape}/{kind}/{part}"].astype(np.float32) for part in "wi")
        rank = rank_for_ratio([(w.shape[0], w.shape[1])], ratio)
        yield Problem(f"{kind} {shape} k={rank}", w, weight / weight.mean(), rank)


def real_importance(run: Path) -> dict[str, np.ndarray]:
    """Weights and importance of the blocks in `REAL`, computed once and kept beside the run."""
    kept = run / "importance.npz"
    if kept.is_file():
        return dict(np.load(kept))
    record = read_json(run / "settings.json")
    settings = make_settings(record["model"], task=record["task"], out=run)
    inputs = load_inputs(settings)
    dense = load_model(run / "stages" / "dense")
    batches = train_batches(inputs.train, 32, seed=0, epoch=0)[: EXAMPLES // 32]
    fisher = fisher_scores(
        as_function(dense),
        parameters(dense),
        batches,
        lambda logits, batch: cross_entropy(logits, batch["labels"], batch["weight"]),
    )
    pruned = parameters(load_model(run / "stages" / "pruned"))
    scores, masks, _ = pruning_arrays(run / "stages" / "pruned")
    scored = {p: by_score(scores[p], masks[p], 0.1) for p in scores}
    sources = {
        "fisher": (parameters(dense), fisher),
        "score": (pruned, scored),
    }
    found = {
        f"{shape}/{kind}/{part}": np.block([[np.asarray(tree[p]) for p in row] for row in blocks])
        for shape, blocks in REAL.items()
        for kind, trees in sources.items()
        for part, tree in zip("wi", trees, strict=True)
    }
    np.savez(kept, **found)
    return found


def batch(run: Path) -> dict[str, float]:
    """Seconds for all compressible matrices of a model at 25 %: in few calls, and in a loop.

    At most 30 sweeps each, every matrix by its own convergence.
    """
    pruned = run / "stages" / "pruned"
    weights = compressible(parameters(load_model(pruned)))
    scores, masks, _ = pruning_arrays(pruned)
    scored = {p: by_score(scores[p], masks[p], 0.1) for p in weights}
    rank = rank_for_ratio([(w.shape[0], w.shape[1]) for w in weights.values()], 0.25)
    stacks = defaultdict(list)
    for path, w in weights.items():
        stacks[w.shape].append((w, scored[path]))
    stacked = [tuple(map(jnp.stack, zip(*pairs, strict=True))) for pairs in stacks.values()]

    solve = partial(weighted_als, rank=rank, max_sweeps=30)
    in_turn = jax.jit(lambda w, i: jax.lax.map(lambda pair: solve(*pair), (w, i)))
    at_once = jax.jit(jax.vmap(lambda w, i: solve(w, i)))
    ways: dict[str, Callable[[], Any]] = {
        "loop": lambda: [solve(w, scored[p]) for p, w in weights.items()],
        "lax.map": lambda: [in_turn(*stack) for stack in stacked],
        "vmap": lambda: [at_once(*stack) for stack in stacked],
    }
    found = {name: median_seconds(way, repeats=3) for name, way in ways.items()}
    print(f"{len(weights)} matrices: {found}", flush=True)
    return found | {"matrices": len(weights), "rank": rank}


def measure(problem: Problem, limit: float) -> dict[str, Any]:
    """Objectives of all solvers on one problem, and their times to the target."""
    w, weight = jnp.asarray(problem.w), jnp.asarray(problem.importance)
    rank = problem.rank
    jax.clear_caches()
    first, again = (_once(lambda: weighted_als(w, weight, rank)) for _ in range(2))
    closed = {s: weighted_svd(w, weight, rank, s) for s in ("row", "column", "separable")}
    plain = svd(w, rank)
    starts = [None, plain, *(_random(w.shape, rank, seed) for seed in (0, 1))]
    traces = [
        np.asarray(weighted_als(w, weight, rank, init=i, max_sweeps=LONG_RUN, tol=0.0)[1].objective)
        for i in starts
    ]
    least = float(min(trace.min() for trace in traces))
    ways = {"textbook ALS": by_textbook(problem)}
    if importlib.util.find_spec("cmfrec") is not None:  # else left out: it needs a C compiler
        for name, use_cg in (("cmfrec, CG", True), ("cmfrec, Cholesky", False)):
            ways[name] = by_cmfrec(problem, use_cg=use_cg)
    others = {name: Recorded(way, problem, least, limit) for name, way in ways.items()}
    best = min(least, *(found.least for found in others.values()))
    ours = {share: _time_of_als(w, weight, rank, traces[0], best, share) for share in SHARES}
    return {
        "name": problem.name,
        "best": best,
        "svd_seconds": median_seconds(lambda: jnp.linalg.svd(w, full_matrices=False)),
        "compile_seconds": first - again,
        "sweeps": {str(share): sweeps_to(traces[0], best, share) for share in SHARES},
        "seconds": {
            str(share): {"ours": ours[share]}
            | {name: found.seconds_to(best, share) for name, found in others.items()}
            for share in SHARES
        },
        "seconds_given": {name: found.given for name, found in others.items()},
        "objective": {name: _objective(problem, f) / best for name, f in closed.items()}
        | {"svd": _objective(problem, plain) / best}
        | {"ours": float(traces[0].min()) / best}
        | {name: found.least / best for name, found in others.items()},
    }


class Recorded:
    """How the objective of a solver falls, until it is below ours, stands, or time is up."""

    def __init__(
        self, runs: Iterator[tuple[float, LowRank]], problem: Problem, least: float, limit: float
    ):
        self.points: list[tuple[float, float]] = []
        spent = time.perf_counter()
        for seconds, factors in runs:
            self.points.append((seconds, _objective(problem, factors)))
            now = self.points[-1][1]
            earlier = [value for then, value in self.points if then <= 0.5 * seconds]
            still = len(self.points) > 5 and earlier and earlier[-1] < now * (1 + 1e-4)
            if still or now <= least or time.perf_counter() - spent > limit:
                break

    @property
    def least(self) -> float:
        return min(value for _, value in self.points)

    @property
    def given(self) -> float:
        """Seconds of the longest run."""
        return self.points[-1][0]

    def seconds_to(self, best: float, share: float) -> float | None:
        """Time to within a share of the best; None if never.

        Between two points, by the logarithm of what is left.
        """
        before = (0.0, float("inf"))
        for point in self.points:
            if point[1] <= best * (1 + share):
                left = [np.log(max(f / best - 1, share / 10)) for f in (before[1], point[1])]
                part = (left[0] - np.log(share)) / (left[0] - left[1]) if before[0] else 1.0
                return float(before[0] + part * (point[0] - before[0]))
            before = point
        return None


def sweeps_to(trace: np.ndarray, best: float, share: float) -> int | None:
    reached = trace <= best * (1 + share)
    return max(1, int(np.argmax(reached))) if reached.any() else None


def _time_of_als(
    w: Array, weight: Array, rank: int, trace: np.ndarray, best: float, share: float
) -> float | None:
    """Of a solve that ends there, its start included."""
    sweeps = sweeps_to(trace, best, share)
    if sweeps is None:
        return None
    return median_seconds(lambda: weighted_als(w, weight, rank, max_sweeps=sweeps, tol=0.0))


def _once(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - started


def median_seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    _once(work)
    return float(np.median([_once(work) for _ in range(repeats)]))


def _random(shape: tuple[int, ...], rank: int, seed: int) -> LowRank:
    random = np.random.default_rng(seed)
    a, b = random.normal(size=(shape[0], rank)), random.normal(size=(rank, shape[1]))
    return LowRank(jnp.asarray(0.1 * a, jnp.float32), jnp.asarray(0.1 * b, jnp.float32))


def _objective(problem: Problem, factors: LowRank) -> float:
    a, b = (np.asarray(x, np.float64) for x in factors)
    return float(np.sum(problem.importance * np.square(problem.w - a @ b)))


def by_cmfrec(problem: Problem, *, use_cg: bool) -> Iterator[tuple[float, LowRank]]:
    """Seconds and factors of runs of 1, 2, 4, … iterations, all from one random start."""
    from cmfrec import CMF

    for doublings in itertools.count():
        model = CMF(
            method="als",
            k=problem.rank,
            lambda_=1e-6,
            center=False,
            user_bias=False,
            item_bias=False,
            scale_lam=False,
            use_cg=use_cg,
            niter=2**doublings,
            finalize_chol=False,
            use_float=True,
            precompute_for_predictions=False,
            verbose=False,
            random_state=1,
            nthreads=usable_cpus(),
        )
        started = time.perf_counter()
        model.fit(problem.w, W=problem.importance)
        yield time.perf_counter() - started, LowRank(model.A_, model.B_.T)


def by_textbook(problem: Problem) -> Iterator[tuple[float, LowRank]]:
    """ALS by a Cholesky factorization of every row's system, from the start that ours has."""
    w, weight = jnp.asarray(problem.w), jnp.asarray(problem.importance)
    start = lambda: weighted_svd(w, weight, problem.rank, "separable")  # noqa: E731
    seconds, factors = median_seconds(start), start()
    jax.block_until_ready(_textbook_sweep(w, weight, factors))
    while True:
        started = time.perf_counter()
        factors = jax.block_until_ready(_textbook_sweep(w, weight, factors))
        seconds += time.perf_counter() - started
        yield seconds, factors


@jax.jit
def _textbook_sweep(w: Array, weight: Array, factors: LowRank) -> LowRank:
    def rows(b: Array, w: Array, weight: Array) -> Array:
        def one(row: tuple[Array, Array]) -> Array:
            target, i = row
            gram = (b * i) @ b.T
            ridge = 1e-6 * jnp.trace(gram) / len(gram)
            factor = jax.scipy.linalg.cho_factor(gram + ridge * jnp.eye(len(gram)))
            return jax.scipy.linalg.cho_solve(factor, b @ (i * target))

        return jax.lax.map(one, (w, weight))

    a = rows(factors.b, w, weight)
    return LowRank(a, rows(a.T, w.T, weight.T).T)


def as_line(row: dict[str, Any]) -> str:
    """One problem in the units in which solvers compare: SVDs of the same matrix."""
    one = row["svd_seconds"]
    share = str(SHARES[-1])
    times = "  ".join(
        f"{name} {_in_svds(seconds, one, row['seconds_given'].get(name))}"
        for name, seconds in row["seconds"][share].items()
    )
    objective = row["objective"]
    kinds = ("row", "column", "separable", "ours")
    values = "  ".join(f"{kind} {objective[kind]:.3f}" for kind in kinds)
    return f"{row['name']:<26} SVD {one * 1e3:.0f} ms | to 0.1 %: {times} | of best: {values}"


def _in_svds(seconds: float | None, one: float, given: float | None) -> str:
    if seconds is not None:
        return f"{seconds / one:.1f}"
    return "not reached" if given is None else f"> {given / one:.0f}"


def print_table(table: dict[str, Any]) -> None:
    """The results as Markdown."""
    names = ["ours", "cmfrec, CG", "cmfrec, Cholesky", "textbook ALS"]
    print(
        "| problem | SVD | sweeps | " + " | ".join(names) + " | row | column | separable | ours |"
    )
    print("|---" * (len(names) + 7) + "|")
    for row in table["problems"]:
        share, one, objective = str(SHARES[-1]), row["svd_seconds"], row["objective"]
        cells = [row["name"], f"{one * 1e3:.0f} ms", str(row["sweeps"][share] or "–")]
        for name in names:
            seconds = row["seconds"][share]
            given = row["seconds_given"].get(name)
            cells.append(_in_svds(seconds[name], one, given) if name in seconds else "–")
        cells += [f"{objective[kind]:.3f}" for kind in ("row", "column", "separable", "ours")]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

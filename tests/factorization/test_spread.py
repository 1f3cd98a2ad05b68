"""Matrices spread over eight devices: the factors of one device, and no work done twice."""

import os
import pickle
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.factorization import factorize
from lpaf_jax.factorization.spread import solve_each
from lpaf_jax.importance import Subject
from lpaf_jax.solvers import PRODUCT, SOLVERS

RANK, FLOOR = 2, 0.1
# Two shares of nine for eight devices, of which seven are filled up; and fewer than devices.
COUNTS = {(7, 5): 9, (5, 7): 3}

SOLVED = [
    name for name, each in SOLVERS.items() if each.form is PRODUCT and each.uses <= {"entries"}
]
SCRIPT = """
import pickle, sys
import jax, jax.numpy as jnp, numpy as np
from lpaf_jax.factorization import factorize
from lpaf_jax.solvers import SOLVERS
from lpaf_jax.factorization.spread import solve_each
from lpaf_jax.importance import Subject

path, rank, floor = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
with open(path, "rb") as file:
    matrices = pickle.load(file)
matrices = [jax.tree.map(jnp.asarray, tree) for tree in matrices]
subject = Subject(None, *matrices, {}, lambda count=None: (), lambda *_: 0)
found = {"devices": jax.device_count()}
for solver in sys.argv[4:]:
    kind = "score" if SOLVERS[solver].uses else "none"
    solutions = factorize(subject, importance=kind, solver=solver, rank=rank, floor=floor)
    factors = {path: each.factors for path, each in solutions.items()}
    found[solver] = jax.tree.map(np.asarray, factors)
    for x in jax.tree.leaves(factors):  # they go on to be layers of a model, with other arrays
        assert x.sharding.device_set == {jax.devices()[0]} and not x.committed

solved = []

def noted(x):
    jax.debug.callback(lambda *at: solved.append(tuple(map(int, at))),
                       jax.lax.axis_index("problems"), x[0])
    return -x

found["solutions"] = np.stack(solve_each(noted, [jnp.full(3, float(i)) for i in range(11)]))
jax.effects_barrier()
found["solved"] = sorted(solved)
with open(path, "wb") as file:
    pickle.dump(found, file)
"""


@pytest.fixture(scope="module")
def matrices() -> Any:
    """W with zeros, S and M by path."""
    rng = np.random.default_rng(0)
    weights, scores, masks = {}, {}, {}
    for shape, count in COUNTS.items():
        for i in range(count):
            path = f"{shape[0]}.{i}"
            masks[path] = rng.random(shape) < 0.6
            weights[path] = (rng.normal(size=shape) * masks[path]).astype(np.float32)
            scores[path] = rng.normal(size=shape).astype(np.float32)
    return weights, scores, masks


@pytest.fixture(scope="module")
def spread(matrices: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("spread") / "found.pickle"
    path.write_bytes(pickle.dumps(matrices))
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, str(RANK), str(FLOOR), *SOLVED],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    found = pickle.loads(path.read_bytes())
    assert found["devices"] == 8
    return found


@pytest.mark.parametrize("solver", SOLVED)
def test_factors_are_those_of_one_device(solver: str, matrices: Any, spread: Any) -> None:
    nothing: Any = None
    given = jax.tree.map(jnp.asarray, matrices)
    subject = Subject(nothing, *given, {}, lambda count=None: (), lambda *_: jnp.float32(0))
    kind = "score" if SOLVERS[solver].uses else "none"
    one = factorize(subject, importance=kind, solver=solver, rank=RANK, floor=FLOOR)
    assert spread[solver].keys() == one.keys()
    # Rounding moves the sweep at which the exact solver stops, on some processors by more than one.
    atol = 1e-2 if solver == "elementwise" else 1e-4
    for path, ((a, b), _) in one.items():
        found_a, found_b = spread[solver][path]
        np.testing.assert_allclose(found_a @ found_b, a @ b, atol=atol, err_msg=path)


def test_each_device_solves_its_share_alone(spread: Any) -> None:
    # 11 problems on 8 devices: two each, the last five places filled from the beginning.
    assert spread["solved"] == sorted((i // 2, i % 11) for i in range(16))
    np.testing.assert_array_equal(spread["solutions"], -np.arange(11.0)[:, None] * np.ones(3))


def test_on_one_device_each_problem_is_solved_once() -> None:
    solved: list[float] = []

    def noted(x: jax.Array) -> jax.Array:
        jax.debug.callback(lambda x: solved.append(float(x)), x)
        return 2 * x

    assert solve_each(noted, [jnp.float32(i) for i in range(3)]) == [0, 2, 4]
    jax.effects_barrier()
    assert sorted(solved) == [0, 1, 2]

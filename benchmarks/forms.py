"""What other forms than thin factors keep of trained weights, at the same size.

    python benchmarks/forms.py            # a minute on two cores
    python benchmarks/forms.py --show

Energy kept, `1 − ‖W − Ŵ‖² / ‖W‖²`, of the matrices in blocks 0 and 3 of MiniLM (the least and the
most of them) and of its table of token embeddings, nothing weighted and nothing trained. A form
with no size within the share is left out, and so is a table of which that form would be a matrix of
its own.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from provenance import provenance

from lpaf_jax.checkpoints import load_model, resolve_model
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.factorization import FORMS, table_record
from lpaf_jax.factors import KINDS
from lpaf_jax.linalg import kronecker_shapes, nearest_kronecker, tensor_train
from lpaf_jax.models import compressible, parameters

RESULTS = Path(__file__).parent / "results" / "forms.json"
SHARES = (0.5, 0.25)
BLOCKS = ("encoder.layer.0.", "encoder.layer.3.")
# The digits that a row of 384 is split into.
DIGITS = ((16, 24), (6, 8, 8))
# Rows of the table that become trains at a time.
_ROWS = 4096
SUMS = "kronecker_sum_embedding"
Shapes = tuple[tuple[int, int], tuple[int, int]]


def of_spectrum(s: np.ndarray, price: int, numbers: int, share: float) -> tuple[float, float]:
    """Energy kept and size, as shares, of as many directions as the share pays for."""
    count = min(int(share * numbers / price * (1 + 1e-9)), len(s))
    energy = np.square(s.astype(np.float64))
    return float(energy[:count].sum() / energy.sum()), count * price / numbers


def by_svd(w: np.ndarray, share: float) -> tuple[float, float]:
    # Through the smaller Gram matrix: single directions do not matter here, and tables are tall.
    gram = w.T @ w if w.shape[0] > w.shape[1] else w @ w.T
    values = np.linalg.eigvalsh(gram.astype(np.float64))[::-1]
    return of_spectrum(np.sqrt(np.maximum(values, 0)), sum(w.shape), w.size, share)


def by_kronecker(w: np.ndarray, share: float, shapes: Shapes) -> tuple[float, float]:
    price = sum(map(math.prod, shapes))
    most = min(map(math.prod, shapes))
    count = min(most, max(1, int(share * w.size / price)))
    found = nearest_kronecker(jnp.asarray(w), shapes, count)
    return kept(w, np.asarray(found.dense())), count * price / w.size


def by_trains(w: np.ndarray, share: float, digits: tuple[int, ...]) -> tuple[float, float] | None:
    """Every row a train of its own, of the largest rank that the share pays for."""
    ones = (1,) * len(digits)
    rank, size = 0, 0
    while (more := _train_size(digits, rank + 1)) <= share * math.prod(digits) and more > size:
        rank, size = rank + 1, more
    if rank == 0:
        return None
    split = jax.jit(jax.vmap(lambda row: tensor_train(row[None], (ones, digits), rank).dense()[0]))
    whole = np.concatenate([np.asarray(split(rows)) for rows in parts(w)])
    return kept(w, whole), size / math.prod(digits)


def by_sums(table: np.ndarray, share: float) -> tuple[float, float]:
    """Rows laid out on a grid, as of a table that becomes a sum of Kronecker products."""
    record, kind = table_record("kronecker-sums", table.shape, share), KINDS[SUMS]
    count = np.ones(len(table))
    factors = FORMS["kronecker-sums"].solve(jnp.asarray(table), record, count, None)
    whole = np.asarray(kind.dense(factors))[: len(table)]
    return kept(table, whole), kind.size(record, table.shape) / table.size


def _train_size(digits: tuple[int, ...], rank: int) -> int:
    """Numbers of a train whose ranks are at most `rank`."""
    record = {"rank": rank, "digits": list(digits)}
    return KINDS["train_embedding"].size(record, (1, math.prod(digits)))


def parts(w: np.ndarray) -> Iterator[jax.Array]:
    for start in range(0, len(w), _ROWS):
        yield jnp.asarray(w[start : start + _ROWS])


def kept(w: np.ndarray, approximation: np.ndarray) -> float:
    return 1 - float(np.sum(np.square(w - approximation)) / np.sum(np.square(w)))


def measured() -> list[dict[str, Any]]:
    params = parameters(load_model(resolve_model("minilm"), head="classification"))
    blocks = {
        path: np.asarray(w)
        for path, w in compressible(params).items()
        if any(name in path for name in BLOCKS)
    }
    (table,) = (
        np.asarray(x) for path, x in params.items() if path.endswith("word_embeddings.weight")
    )
    vocabulary, width = table.shape
    halves: dict[str, Callable[[np.ndarray], Shapes]] = {
        "sum of Kronecker products": lambda w: kronecker_shapes(*w.shape),
        "Kronecker products, (m/2, n) ⊗ (2, 1)": lambda w: ((w.shape[0] // 2, w.shape[1]), (2, 1)),
    }
    rows = []
    for share in SHARES:
        found: dict[str, list[tuple[float, float]]] = {
            "SVD": [by_svd(w, share) for w in blocks.values()]
        }
        for name, shapes in halves.items():
            if name.startswith("sum") or share == 0.5:
                each = [by_kronecker(w, share, shapes(w)) for w in blocks.values()]
                found[name] = each
        rows += [row("blocks", name, share, each) for name, each in found.items()]
        rows.append(row("table", "SVD", share, [by_svd(table, share)]))
        rows.append(row("table", "sum of Kronecker products", share, [by_sums(table, share)]))
        for digits in DIGITS:
            trains = by_trains(table, share, digits)
            if trains is not None:
                name = f"a train a row, {' · '.join(map(str, digits))}"
                rows.append(row("table", name, share, [trains]))
        if share == 0.5:
            pairs = ((vocabulary, width // 2), (1, 2))
            rows.append(
                row("table", "A ⊗ B, B of 1 × 2", share, [by_kronecker(table, share, pairs)])
            )
        print(f"{share:.0%} done", flush=True)
    return rows


def row(of: str, form: str, share: float, each: list[tuple[float, float]]) -> dict[str, Any]:
    energies, sizes = zip(*each, strict=True)
    return {
        "of": of,
        "form": form,
        "share": share,
        "size": max(sizes),
        "energy": [min(energies), max(energies)],
    }


def show(rows: list[dict[str, Any]]) -> None:
    print("| of | form | numbers | energy kept |")
    print("|---|---|---|---|")
    for each in rows:
        least, most = (f"{100 * x:.1f}" for x in each["energy"])
        energy = least if least == most else f"{least} to {most}"
        print(f"| {each['of']} | {each['form']} | {100 * each['size']:.1f} % | {energy} % |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    args = parser.parse_args()
    if not args.show:
        write_json(RESULTS, {**provenance(), "model": "minilm", "rows": measured()})
    show(read_json(RESULTS)["rows"])


if __name__ == "__main__":
    main()

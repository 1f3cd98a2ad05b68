"""What cuts of attention lose, in units of the loss: factors, and channels in their place.

    python benchmarks/attention_cuts.py            # half a minute to two on two cores
    python benchmarks/attention_cuts.py --show

SmolLM2-135M, 12 pieces of 256 tokens of IMDb, the moments of the dense model. Values: the factors
of v_proj and o_proj, their ranks shared out at best, against channels of both in a basis of each
head. Queries and keys: the factors of q_proj and k_proj, against pairs of channels that turn
together, dropped in both without making up for them, as in MoDeGPT. Each as a share of what it
costs to drop the first of the two matrices whole; means over every fourth block.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from provenance import provenance

from lpaf_jax.checkpoints import DecoderOnDisk, resolve_model
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.data import load_task, load_tokenizer, sample_blocks, text_tokens
from lpaf_jax.factorization.backward import Backward, Sides
from lpaf_jax.factorization.channels import elimination, in_space
from lpaf_jax.importance import TWO_SIDED, Weighting
from lpaf_jax.importance.gradients import by_gradients
from lpaf_jax.linalg import allocate_choices, rank_choices
from lpaf_jax.models import layer_at
from lpaf_jax.ranks import loss_spectrum

RESULTS = Path(__file__).parent / "results" / "attention_cuts.json"
SHARES = (0.75, 0.5, 0.25)
EVERY = 4


def weighting(sides: Sides) -> Weighting:
    assert TWO_SIDED.of_inputs is not None
    return TWO_SIDED.of_inputs(by_gradients(sides.gradients), sides.inputs)


def by_factors(matrices: list[np.ndarray], sides: list[Sides], share: float) -> float:
    """The least loss within a share of the numbers of two matrices."""
    spectra = [loss_spectrum(w, weighting(each)) for w, each in zip(matrices, sides, strict=True)]
    choices = [rank_choices(s, w.shape) for s, w in zip(spectra, matrices, strict=True)]
    ranks = allocate_choices(choices, share * sum(w.size for w in matrices))
    return float(
        sum(0 if k is None else np.square(s[k:]).sum() for s, k in zip(spectra, ranks, strict=True))
    )


def by_pairs(
    matrices: list[np.ndarray], sides: list[Sides], groups: int, width: int, share: float
) -> float:
    """Of queries and keys: the pairs of channels that count least are dropped in both."""
    costs = []
    for w, each in zip(matrices, sides, strict=True):
        energy = np.einsum("in,ij,jn->n", w, np.asarray(each.inputs.second), w)
        cost = (energy * np.diagonal(each.gradients)).reshape(groups, -1, 2, width // 2)
        costs.append(cost.sum((1, 2)).ravel())
    cost = np.sort(sum(costs) / 2)
    return float(cost[: round((1 - share) * len(cost))].sum())


def measure() -> dict[str, Any]:
    folder = resolve_model("smollm2")
    source, tokenizer = DecoderOnDisk(folder), load_tokenizer(folder)
    tokens = sample_blocks(text_tokens(tokenizer, load_task("imdb").train.texts), 256, 12, 0)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        backward = Backward(source, tokens, Path(scratch))
        backward.forward(lambda index: None)
        for index in reversed(range(source.blocks)):
            block = source.block(index)
            places = [f"self_attn.{name}_proj" for name in "qkvo"]
            found = list(backward.block(index, block, places).values())
            if index % EVERY:
                continue
            w = [np.asarray(layer_at(block, place).kernel[...]) for place in places]
            between = source.values_between(index)
            assert between is not None
            assert between.head is not None
            right = weighting(found[3]).right
            space = in_space(between, jnp.asarray(w[3]), found[3].inputs, right)
            gone = np.asarray(elimination(space, right).errors, np.float64)
            keys = w[1].shape[1] // between.head
            whole = [np.square(loss_spectrum(w[i], weighting(found[i]))).sum() for i in (3, 0)]
            for share in SHARES:
                left = round((1 - share) * len(gone))
                rows.append(
                    {
                        "block": index,
                        "share": share,
                        "values": {
                            "factors": by_factors(w[2:], found[2:], share) / whole[0],
                            "channels": float(gone[:left].sum()) / whole[0],
                        },
                        "queries and keys": {
                            "factors": by_factors(w[:2], found[:2], share) / whole[1],
                            "pairs": by_pairs(w[:2], found[:2], keys, between.head, share)
                            / whole[1],
                        },
                    }
                )
    return {"rows": rows, "tokens": int(tokens.size)} | provenance()


def show(rows: list[dict[str, Any]]) -> None:
    kinds = [(of, how) for of in ("values", "queries and keys") for how in rows[0][of]]
    print(f"| kept | {' | '.join(f'{of}: {how}' for of, how in kinds)} |")
    print("|" + "---|" * (1 + len(kinds)))
    for share in SHARES:
        of = [row for row in rows if row["share"] == share]
        cells = [f"{np.mean([row[a][b] for row in of]):.2%}" for a, b in kinds]
        print(f"| {share:.0%} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--show", action="store_true", help="print what is there, run nothing")
    if not parser.parse_args().show:
        write_json(RESULTS, measure())
    show(read_json(RESULTS)["rows"])


if __name__ == "__main__":
    main()

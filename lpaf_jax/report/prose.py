"""What the page says about the stages and the words it uses."""

from collections.abc import Mapping
from typing import Any

from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics


def explanations(metrics: Metrics, analysis: Mapping[str, Any]) -> dict[str, str]:
    """Two sentences on each stage this run went through, from what the run recorded."""
    texts = {
        "dense": _dense(metrics),
        "pruned": _pruned(metrics, analysis),
        "factorized": _factorized(metrics),
        "final": _final(metrics),
    }
    return {row.key: texts[row.key] for row in facts.stages(metrics)}


def left_out(metrics: Metrics) -> list[str]:
    """Names of the steps that the settings of the run left out."""
    return list(facts.setting(metrics, "without") or [])


def _dense(metrics: Metrics) -> str:
    given = facts.setting(metrics, "finetune_epochs") == 0
    trained = "as it was given, without further training" if given else "trained on the task"
    return (
        f"The starting model with all of its weights, {trained}. "
        "Every later figure is compared with this one."
    )


_REMOVED = {
    "magnitude": "those nearest zero (magnitude pruning)",
    "sensitivity": "those that the loss depends on least (first-order sensitivity)",
    "first-order": "those that training was pushing toward zero anyway (movement pruning)",
}


def _pruned(metrics: Metrics, analysis: Mapping[str, Any]) -> str:
    removed = facts.number(analysis, "sparsity")
    share = "" if removed is None else f", in the end {facts.percent(removed, 0)} of them"
    criterion = facts.setting(metrics, "criterion")
    which = _REMOVED.get(criterion, _REMOVED["first-order"])
    return (
        f"While training goes on, more and more compressible weights are set to zero{share}: "
        f"{which}. The matrices keep their shape, so nothing is smaller yet, but what is left "
        "tends to have a lower rank and is easier to factorize."
    )


_WEIGHED = {
    "mask": "keeping best the weights that pruning left",
    "magnitude": "keeping best the largest weights",
}


def _factorized(metrics: Metrics) -> str:
    solver, kind = facts.setting(metrics, "solver"), facts.setting(metrics, "importance")
    pruned = "pruned" in (metrics.get("stages") or {})
    rank = facts.number(metrics, "rank")
    k = f"k = {rank:.0f}" if rank is not None else "a small k"
    if "none" in (solver, kind) or "weighting" in left_out(metrics):
        chosen = "with every weight counting the same (plain truncated SVD)"
    elif kind in _WEIGHED:
        chosen = _WEIGHED[kind]
    elif pruned:
        chosen = "keeping best the weights that pruning found important"
    else:
        chosen = "keeping best the weights that the gradients on the task mark as important"
    start = "" if pruned else "The pruning step was left out. "
    return (
        f"{start}Each compressible matrix of m × n numbers is replaced by the product of an "
        f"m × k and a k × n matrix, {k}, {chosen}. Nothing has been retrained yet, so accuracy "
        "usually drops here, to be won back in the last stage."
    )


def _final(metrics: Metrics) -> str:
    if "mixing" in left_out(metrics):
        return (
            "The factors are trained on the task as they are, without the old matrices beside "
            "them. They alone are saved."
        )
    return (
        "Mixed-rank fine-tuning: in every training step each factorized layer uses its old "
        "matrix instead with chance p, and p falls to zero. In the end only the factors are "
        "left, and they alone are saved."
    )


GLOSSARY = {
    "Compressible weights": (
        "The numbers in the query, key, value, attention-output and feed-forward matrices of "
        "every layer. Embeddings, biases, norms and the classifier are left alone, so the whole "
        "model shrinks by less than these do."
    ),
    "Rank, factorization": (
        "A matrix of m × n numbers has rank k if it is the product of an m × k and a k × n "
        "matrix. For small k the two together hold fewer numbers, k(m + n) instead of mn, and "
        "need fewer multiplications. The two matrices are its factors."
    ),
    "Sparsity, pruning": (
        "Pruning sets weights to zero; sparsity is the share that is zero. Magnitude pruning "
        "removes the weights nearest zero. First-order pruning goes by the gradient times the "
        "weight, summed over the steps: with its sign, it removes weights that training moves "
        "toward zero (movement pruning); without, those the loss depends on least (sensitivity)."
    ),
    "Importance": (
        "A number per weight that says how much an error in it matters. The factorization makes "
        "the importance-weighted sum of squared errors small, not the plain one."
    ),
    "Singular values, spectrum": (
        "How strongly a matrix acts along each of its independent directions, from the strongest "
        "down. If they fall quickly, few directions carry most of the matrix and a small rank is "
        "enough."
    ),
    "Effective rank": (
        "How many directions a matrix really uses: e to the entropy of its singular values, "
        "scaled to sum to one (Roy and Vetterli, 2007). It equals the rank when all non-zero "
        "singular values are equal, and is smaller the more uneven they are."
    ),
    "Energy rank, stable rank": (
        "Two other counts of directions: how many of the largest singular values hold 90 % of "
        "the sum of squares, and the sum of squares divided by the largest square."
    ),
    "Mixed-rank fine-tuning, p": (
        "Training in which every factorized layer is replaced at random, with chance p, by the "
        "matrix it came from. p starts below one and falls to zero, so the model gets used to "
        "its factors step by step."
    ),
    "Consistency loss": (
        "Each batch passes through the model twice with different random choices; the loss adds "
        "how much the two answers differ."
    ),
    "95 % interval": (
        "The accuracies that fit the result if the test examples are a random draw of all such "
        "texts (Wilson's score interval). It says nothing about how another training run with "
        "another seed would turn out."
    ),
    "Accuracy kept": "The final model's accuracy divided by the dense model's.",
    "Batch, latency": (
        "Batch is how many texts go through the model at once. Latency is the time of one such "
        "pass; the median of several is shown, with the fastest and the slowest."
    ),
}

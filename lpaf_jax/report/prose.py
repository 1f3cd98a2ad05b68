"""What the page says about the stages and the words it uses."""

from lpaf_jax.report import facts
from lpaf_jax.report.facts import Metrics
from lpaf_jax.report.measures import Measure, primary

ORIGIN = (
    "The stages are those of Low-Rank Prune-And-Factorize (LPAF), a method of Siyu Ren and Kenny "
    "Q. Zhu, “Low-Rank Prune-And-Factorize for Language Model Compression”, LREC-COLING 2024."
)


def explanations(metrics: Metrics) -> dict[str, str]:
    """Two sentences on each stage this run went through, from what the run recorded."""
    texts = {
        "dense": _dense(metrics),
        "pruned": _pruned(metrics),
        "factorized": _factorized(metrics),
        "final": _final(metrics),
    }
    return {key: texts[key] for key in metrics["stages"]}


def _dense(metrics: Metrics) -> str:
    given = metrics["settings"]["finetune_epochs"] == 0
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


def _pruned(metrics: Metrics) -> str:
    settings = metrics["settings"]
    return (
        "While training goes on, more and more compressible weights are set to zero, in the end "
        f"{facts.percent(1 - settings['kept'], 0)} of them: {_REMOVED[settings['criterion']]}. The "
        "matrices keep their shape, so nothing is smaller yet, but what is left tends to have a "
        "lower rank and is easier to factorize."
    )


_WEIGHED = {
    "mask": "keeping best the weights that pruning left",
    "magnitude": "keeping best the largest weights",
}


def _factorized(metrics: Metrics) -> str:
    settings = metrics["settings"]
    kind, pruned = settings["importance"], "pruned" in metrics["stages"]
    if facts.plain_svd(settings):
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
        f"m × k and a k × n matrix, k = {metrics['rank']}, {chosen}. Nothing has been retrained "
        f"yet, so {_worse(primary(metrics)[1])} in the last stage."
    )


def _worse(measure: Measure) -> str:
    if measure.less:
        return f"{measure.name} usually rises here, to be brought down again"
    return f"{measure.name} usually drops here, to be won back"


def _final(metrics: Metrics) -> str:
    if "mixing" in metrics["settings"]["without"]:
        return (
            "The factors are trained on the task as they are, without the old matrices beside "
            "them. They alone are saved."
        )
    return (
        "Mixed-rank fine-tuning: in every training step each factorized layer uses its old "
        "matrix instead with chance p, and p falls to zero. In the end only the factors are "
        "left, and they alone are saved."
    )


# Each by a word as the page uses it; `sections.glossary` leaves out those that a page does not.
GLOSSARY = {
    "Compressible weights": (
        "The numbers in the query, key, value, attention-output and feed-forward matrices of "
        "every layer. Embeddings, biases, norms and the head are left alone, so the whole "
        "model shrinks by less than these do."
    ),
    "Accuracy kept": "The final model's accuracy divided by the dense model's.",
    "95 % interval": (
        "The accuracies that fit the result if the test examples are a random draw of all such "
        "texts (Wilson's score interval). It is about one model: two of them may overlap although "
        "the models differ by more than chance."
    ),
    "Chance": (
        "Two models that answer the same test examples are told apart by those that only one of "
        "them has right. The probability given is that of a fair coin, thrown once for each of "
        "these, coming down at least as unevenly (McNemar's exact test); below 5 % the page says "
        "that a difference is hardly chance. Another training run with another seed may still "
        "turn out otherwise."
    ),
    "Batch": "How many texts go through the model at once.",
    "Pruning": (
        "Setting weights to zero. Magnitude pruning removes the weights nearest zero. First-order "
        "pruning goes by the gradient times the weight, summed over the steps: with its sign, it "
        "removes weights that training moves toward zero (movement pruning); without, those the "
        "loss depends on least (sensitivity)."
    ),
    "Factorized": (
        "Written as a product of two matrices, its factors. An m × k and a k × n matrix multiply "
        "to one of m × n numbers and rank k, at most; for small k they hold fewer numbers, "
        "k(m + n) instead of mn, and need fewer multiplications."
    ),
    "Important": (
        "Every weight has a number, its importance, that says how much an error in it matters. "
        "The factorization makes the importance-weighted sum of squared errors small, not the "
        "plain one."
    ),
    "Mixed-rank fine-tuning": (
        "Training in which every factorized layer is replaced at random, with chance p, by the "
        "matrix it came from. As p falls to zero, the model gets used to its factors step by step."
    ),
    "Singular values": (
        "How strongly a matrix acts along each of its independent directions, from the strongest "
        "down. If they fall quickly, few directions carry most of the matrix and a small rank is "
        "enough."
    ),
    "Effective rank": (
        "How many directions a matrix really uses: e to the entropy of its singular values, "
        "scaled to sum to one (Roy and Vetterli, 2007). It equals the rank when all non-zero "
        "singular values are equal, and is smaller the more uneven they are."
    ),
    "Energy": "The sum of the squares of all singular values, or of all entries of the matrix.",
}

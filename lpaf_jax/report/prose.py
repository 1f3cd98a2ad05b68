"""What the page says about the stages and the words it uses."""

from lpaf_jax.report.facts import Metrics


def origin(metrics: Metrics) -> str:
    """What recipe it was, in its own words."""
    about = metrics.get("about", "")
    return f"Recipe {metrics['recipe']}{': ' if about else ''}{about}"


def explanations(metrics: Metrics) -> dict[str, str]:
    """What each stage of this run says that it did."""
    return {key: entry["text"] for key, entry in metrics["described"].items()}


# Each by a word as the page uses it; `sections.glossary` leaves out those that a page does not.
GLOSSARY = {
    "Compressible weights": (
        "The numbers in the query, key, value, attention-output and feed-forward matrices of "
        "every layer. Embeddings, biases, norms and the head are not among them, so that the "
        "whole model has another share left than these have."
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
        "Written by fewer numbers, its factors: as a product of two matrices, where no other form "
        "is named above. An m × k and a k × n matrix multiply to one of m × n numbers and rank k, "
        "at most; for small k they hold fewer numbers, k(m + n) instead of mn, and need fewer "
        "multiplications."
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
    "Output lost": (
        "The energy of the difference that the factors make to what a matrix gives out, as a share "
        "of the energy of what it gives out: 0 % where nothing changes."
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
    "Energy": (
        "The sum of the squares of all entries; of a matrix, that is the sum of the squares of its "
        "singular values, too."
    ),
}

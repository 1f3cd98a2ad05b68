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
        "The weights in the query, key, value, attention-output and feed-forward matrices of "
        "every layer. Embeddings, biases, norms and the head are not counted, so the share kept "
        "of the whole model is different."
    ),
    "Accuracy kept": "The final model's accuracy divided by the dense model's.",
    "95 % interval": (
        "The accuracies that are consistent with the result if the test examples are a random "
        "sample of such texts (Wilson's score interval). It describes one model: the intervals "
        "of two models can overlap even if the models differ by more than chance."
    ),
    "Chance": (
        "Two models that answer the same test examples are compared on those that only one of "
        "them gets right. The probability is that of fair coin tosses, one for each of these "
        "examples, dividing them at least as unevenly (McNemar's exact test); below 5 %, the "
        "page says that a difference is hardly chance. A training run with another seed may "
        "still come out differently."
    ),
    "Batch": "The number of texts that the model processes at once.",
    "Pruning": (
        "Setting weights to zero. Magnitude pruning removes the weights closest to zero. "
        "First-order pruning uses the gradient times the weight, summed over the steps: signed, "
        "it removes weights that training moves toward zero (movement pruning); unsigned, those "
        "that the loss depends on least (sensitivity)."
    ),
    "Factorized": (
        "Replaced by factors with fewer parameters: a product of two matrices, unless another "
        "form is named above. The product of an m × k and a k × n matrix is an m × n matrix of "
        "rank at most k; for small k, the factors have fewer parameters, k(m + n) instead of mn, "
        "and need fewer multiplications."
    ),
    "Channels": (
        "The units of a feed-forward layer, or the entries of a head's values. Removing one "
        "deletes its row or column from every matrix that it passes through; what is left is "
        "smaller dense matrices."
    ),
    "Importance": (
        "How much an error in a weight matters. The factorization minimises the "
        "importance-weighted sum of squared errors instead of the plain one."
    ),
    "Mixed-rank fine-tuning": (
        "Training in which each factorized layer is replaced at random, with probability p, by "
        "its original matrix. As p falls to zero, the model gradually adapts to its factors."
    ),
    "Output lost": (
        "The energy of the change in a matrix's outputs, as a share of the energy of the "
        "outputs: 0 % if nothing changes."
    ),
    "Singular values": (
        "How strongly a matrix acts along each of its independent directions, in descending "
        "order. If they fall quickly, a few directions carry most of the matrix, and a small "
        "rank is enough."
    ),
    "Effective rank": (
        "The number of directions that a matrix effectively uses: e to the power of the entropy "
        "of its singular values, scaled to sum to one (Roy and Vetterli, 2007). It equals the "
        "rank if all non-zero singular values are equal, and is smaller the more uneven they are."
    ),
    "Energy": (
        "The sum of the squares of all entries; for a matrix, also the sum of the squares of its "
        "singular values."
    ),
}

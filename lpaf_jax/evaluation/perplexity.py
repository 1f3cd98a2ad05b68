"""Perplexity of a text: by what `lpaf evaluate` judges a language model."""

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from lpaf_jax.checkpoints import load_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import read_json
from lpaf_jax.data import load_tokenizer, perplexity, text_batches, text_tokens, text_windows
from lpaf_jax.models import as_function
from lpaf_jax.models.functional import Batch, Params
from lpaf_jax.tasks.kinds import length_for
from lpaf_jax.tasks.options import TEXT_LENGTH
from lpaf_jax.train import LANGUAGE, log_likelihood


class Judge(NamedTuple):
    """A model, and what its parameters are judged by.

    Attributes:
        model: as it is stored.
        score: the official metrics of parameters of its shapes, as JSON values.
        batches: of what they are judged on, as often as it is called.
        loss: `(logits, batch) -> mean loss` against their labels; None where they have none that
            a loss takes.
    """

    model: Any
    score: Callable[[Params], dict[str, Any]]
    batches: Callable[[], Iterable[Batch]]
    loss: Callable[[Any, Batch], Array] | None


def text_judge(
    folder: Path,
    data: Path,
    *,
    text_column: str = "text",
    length: int | None = None,
    stride: int | None = None,
    batch: int = 1,
    on_batch: Callable[[int, int], None] = lambda done, count: None,
) -> Judge:
    """`exp(−Σ_t log p(x_t | those before it in its window) / T)` of the whole of a text.

    The text is read in windows, each `stride` tokens after the last; every token counts once, in
    the first window that holds it, but for the first of all. See `lpaf_jax.data.perplexity`.

    Args:
        folder: of a language model.
        data: a text, or a table with a text a row.
        text_column: the column of the text in a table.
        length: tokens of a window; None takes that of the run that the model is of, else 512 or
            what the model reads.
        stride: None takes the length: the fastest, and the highest figure, as the first tokens of
            a window have little before them.
        batch: windows at a time.
        on_batch: is called after each batch with how many are done, of how many.

    Returns:
        whose score has "perplexity"; "tokens", T of them; "length" and "stride".

    Raises:
        LpafError: the model or the text cannot be read, has too few tokens, the length is more
            than the model reads, or the model overflows.

    Cost: a forward pass of length / stride times the tokens. The logits of a batch are held beside
    the model, batch × length × vocabulary × 4 bytes.
    """
    # What is wrong with these is said before the weights are read.
    tokenizer = load_tokenizer(folder)
    tokens_of = text_tokens(tokenizer, data, text_column)
    model: Any = load_model(folder, head="lm")
    own = read_json(folder / "config.json").get("lpaf_reads", {}).get("length", TEXT_LENGTH)
    length = length_for(length, own, model.positions)
    stride = length if stride is None else stride
    windows = list(text_windows(tokens_of, length, stride))
    count = -(-len(windows) // batch)
    forward = as_function(model)

    @jax.jit
    def found_in(params: Params, batch: Batch) -> Array:
        return jnp.sum(log_likelihood(forward(params, {}, batch), batch))

    def batches() -> Iterable[Batch]:
        return text_batches(windows, batch, length, tokenizer.pad_id)

    def score(params: Params) -> dict[str, Any]:
        total, tokens = 0.0, 0
        for done, rows in enumerate(batches(), 1):
            total += float(found_in(params, rows))
            tokens += int(rows["weight"].sum())
            on_batch(done, count)
        if not tokens:
            raise LpafError(f"{data} has fewer than two tokens, so it has no perplexity")
        if not math.isfinite(total):
            raise LpafError(f"{folder}: the model's outputs on {data} are not finite: it overflows")
        found = {"perplexity": perplexity(total, tokens), "tokens": tokens}
        return found | {"length": length, "stride": stride}

    return Judge(model, score, batches, LANGUAGE.loss)

"""Tokens added to a finished model, also to one whose table of embeddings is factorized."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from lpaf_jax.checkpoints.checkpoint import (
    BESIDE,
    factored_layers,
    plain_tensors,
    saved_config,
    shapes_of,
)
from lpaf_jax.checkpoints.contents import Source, read_source
from lpaf_jax.checkpoints.tensors import read_tensor
from lpaf_jax.checkpoints.weight_files import refuse_pickled
from lpaf_jax.core.errors import LpafError
from lpaf_jax.export.rewrite import card_of, noted, rewrite
from lpaf_jax.factors import read_records


def add_tokens(place: Path | str, out: Path | str, vectors: Mapping[str, np.ndarray]) -> None:
    """Write the model in `place` into `out` with more tokens.

    A table of factors takes the row that is nearest to each vector, and its other factors stay as
    they are: of `T ≈ C B` it is `argmin_c ‖t − c B‖`, of Kronecker products likewise, and of trains
    the train of the vector. A sum of Kronecker products takes none. A head that is tied to the
    table knows the tokens, too.

    Args:
        place: folder of a model.
        out: what stands there is replaced.
        vectors: (H,) by the text of the token.

    Raises:
        LpafError: a token is known already or a vector is not of width H and finite; the tokenizer
            knows other tokens than the table has rows for; the table is a sum of Kronecker
            products; or the model has a head of its own for the next token, which would need rows,
            too.

    Cost: the weights are copied one tensor at a time.
    """
    place, out = Path(place), Path(out)
    refuse_pickled(place)
    source = read_source(place)
    rows, hidden = _checked(source, vectors)
    tensors = plain_tensors(source)
    with tempfile.TemporaryDirectory() as folder:
        beside = Path(folder)
        for name in BESIDE:
            if (place / name).is_file():
                shutil.copyfile(place / name, beside / name)
        _teach(place, beside, list(vectors), rows)
        more = np.stack([np.asarray(v, np.float32).reshape(hidden) for v in vectors.values()])
        grown = _grown(source, more)
        config = saved_config(
            source.values,
            source.family.architectures[source.head],
            read_records(source.values, place),
        )
        rewrite(
            beside,
            out,
            (
                (name, grown.pop(name) if name in grown else read_tensor(h.file, h.name))
                for name, h in tensors.items()
            ),
            config | {"vocab_size": rows + len(more)},
            dtype=None,
            card=noted(
                card_of(place),
                f"**{len(more)} tokens were added** after the results below were measured.",
            ),
        )


def _checked(source: Source, vectors: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """(V, H) of the table."""
    if not vectors:
        raise LpafError("there are no tokens to add")
    if source.head == "lm" and not source.values.get("tie_word_embeddings", True):
        raise LpafError(
            f"{source.folder} has an untied next-token head, which would need new rows as well: "
            "tokens can only be added to classifiers and to models with tied embeddings"
        )
    layer = factored_layers(source).get(source.family.table)
    rows, hidden = (
        shapes_of(source)[f"{source.family.table}.weight"] if layer is None else layer.shape
    )
    for token, vector in vectors.items():
        found = np.asarray(vector)
        if found.shape != (hidden,) or not np.isfinite(found).all():
            raise LpafError(
                f"the vector of {token!r} has shape {found.shape} or is not finite: give {hidden} "
                "finite numbers"
            )
    return rows, hidden


def _teach(place: Path, beside: Path, tokens: list[str], rows: int) -> None:
    """Let the tokenizer in `beside` know the tokens."""
    file = beside / "tokenizer.json"
    if not file.is_file():
        raise LpafError(f"{place} has no tokenizer.json")
    tokenizer = Tokenizer.from_file(str(file))
    known = tokenizer.get_vocab()
    if twice := [token for token in tokens if token in known]:
        raise LpafError(f"{place}: {twice[0]!r} is already a token")
    if len(known) != rows:
        raise LpafError(
            f"{place}: the tokenizer has {len(known)} tokens but the table has {rows} rows, so "
            "the ids of new tokens are unclear"
        )
    tokenizer.add_tokens(tokens)
    tokenizer.save(str(file))


def _grown(source: Source, more: np.ndarray) -> dict[str, np.ndarray]:
    """The tensors of the table with more rows, by their names in the file."""
    table, found = source.family.table, dict[str, np.ndarray]()
    layer = factored_layers(source).get(table)
    headers = plain_tensors(source)

    def named(key: str) -> str:
        bare = key.removeprefix(f"{source.family.prefix}.")
        return next(name for name in (key, bare) if name in headers)

    def read(key: str) -> np.ndarray:
        header = headers[named(key)]
        return read_tensor(header.file, header.name)

    if layer is None:
        key = f"{table}.weight"
        stored = read(key)
        return {named(key): np.concatenate([stored, more.astype(stored.dtype)])}
    names = layer.names(table)
    stored_as = {leaf: read(name) for leaf, name in names.items() if leaf != "bias"}
    factors = {leaf: layer.kind.filed(leaf, x).astype(np.float32) for leaf, x in stored_as.items()}
    for leaf, rows in layer.kind.rows_for(factors, layer.record, more).items():
        old = stored_as[leaf]
        found[named(names[leaf])] = np.concatenate([old, rows.astype(old.dtype)])
    return found

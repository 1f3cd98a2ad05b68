import pytest

from lpaf_jax.linalg import rank_for_ratio

BERT_BASE = [(768, 768)] * 4 + [(768, 3072), (3072, 768)]
MINILM = [(384, 384)] * 4 + [(384, 1536), (1536, 384)]


def kept(shapes: list[tuple[int, int]], rank: int) -> float:
    return rank * sum(m + n for m, n in shapes) / sum(m * n for m, n in shapes)


@pytest.mark.parametrize(("ratio", "rank"), [(0.508, 260), (0.254, 130), (0.157, 80)])
def test_ranks_of_the_paper(ratio: float, rank: int) -> None:
    assert rank_for_ratio(BERT_BASE, ratio) == rank


@pytest.mark.parametrize("shapes", [BERT_BASE, MINILM, [(7, 1000), (13, 17)]])
@pytest.mark.parametrize("ratio", [0.05, 0.16, 0.25, 1 / 3, 0.5])
def test_largest_rank_within_the_budget(shapes: list[tuple[int, int]], ratio: float) -> None:
    rank = rank_for_ratio(shapes, ratio)
    assert kept(shapes, rank) <= ratio or rank == 1
    assert kept(shapes, rank + 1) > ratio or rank == min(map(min, shapes))


def test_a_whole_rank_is_not_lost_to_rounding() -> None:
    # 0.07 · 100 · 100 / 200 = 3.5, and every ratio k / 50 asks for exactly k.
    assert [rank_for_ratio([(100, 100)], k / 50) for k in range(1, 51)] == list(range(1, 51))


def test_at_least_one_and_at_most_the_smallest_side() -> None:
    assert rank_for_ratio(MINILM, 1e-6) == 1
    assert rank_for_ratio([(2, 100), (1000, 1000)], 0.9) == 2


@pytest.mark.parametrize(
    ("shapes", "ratio", "message"),
    [
        ([], 0.5, "no shapes"),
        ([(4, 0)], 0.5, "positive sides"),
        ([(4, 4)], 0.0, "ratio"),
        ([(4, 4)], 1.5, "ratio"),
        ([(4, 4)], float("nan"), "ratio"),
    ],
)
def test_errors(shapes: list[tuple[int, int]], ratio: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rank_for_ratio(shapes, ratio)

import hashlib

import numpy as np
import pytest

from lpaf_jax.data.examples import Examples
from lpaf_jax.data.split import drop_repeats, hash_sample, hash_split, position


def made(texts, labels=None, pairs=None):
    labels = np.zeros(len(texts)) if labels is None else labels
    return Examples(list(texts), pairs, np.array(labels, dtype=np.int32))


def many(n=2000):
    return made([f"sentence number {i}" for i in range(n)], np.arange(n) % 2)


def test_position_is_the_blake2b_of_the_normalised_text():
    digest = hashlib.blake2b(b"a good movie", digest_size=8).digest()
    expected = int.from_bytes(digest, "big") / 2**64
    assert position("  A good\n\tMovie ") == pytest.approx(expected, abs=1e-15)
    assert 0 <= position("") < 1


def test_the_pair_takes_part_in_the_position():
    positions = {position("a", None), position("a", "b"), position("a", "c"), position("ab", "")}
    assert len(positions) == 4


def test_parts_are_disjoint_complete_in_order_and_of_the_asked_sizes():
    examples = many()
    parts = hash_split(examples, (0.7, 0.1, 0.2))
    assert sorted(text for part in parts for text in part.texts) == sorted(examples.texts)
    place = {text: i for i, text in enumerate(examples.texts)}
    for part, share in zip(parts, (0.7, 0.1, 0.2), strict=True):
        places = [place[text] for text in part.texts]
        assert places == sorted(places)
        np.testing.assert_array_equal(part.labels, examples.labels[places])
        deviation = np.sqrt(2000 * share * (1 - share))
        assert abs(len(part) - 2000 * share) < 5 * deviation


def test_a_text_keeps_its_part_whatever_else_is_in_the_file():
    examples = many()
    whole = hash_split(examples, (0.7, 0.1, 0.2))
    some = examples.take(np.arange(1999, 0, -3))
    for part, part_of_whole in zip(hash_split(some, (0.7, 0.1, 0.2)), whole, strict=True):
        assert set(part.texts) <= set(part_of_whole.texts)


def test_texts_that_differ_in_case_and_spaces_share_a_part():
    texts = [f"review {i} of a movie" for i in range(200)]
    parts = hash_split(made(texts + [t.upper().replace(" ", "  ") for t in texts]), (0.5, 0.5))
    for part in parts:
        assert sorted(t for t in part.texts if t.islower()) == sorted(
            " ".join(t.lower().split()) for t in part.texts if t.isupper()
        )


def test_a_sample_has_the_asked_size_and_grows_by_adding():
    examples = many(100)
    small, large = hash_sample(examples, 10), hash_sample(examples, 40)
    assert (len(small), len(large)) == (10, 40)
    assert set(small.texts) < set(large.texts)
    assert small.texts != examples.texts[:10]  # files are often sorted by label
    assert hash_sample(examples, 1000).texts == examples.texts


def test_take_keeps_texts_pairs_and_labels_together():
    taken = made(["a", "b", "c"], [0, 1, 2], ["x", "y", "z"]).take(np.array([2, 0]))
    assert (taken.texts, taken.pairs, taken.labels.tolist()) == (["c", "a"], ["z", "x"], [2, 0])


def test_repeats_keep_the_first_and_contradictions_keep_none():
    examples = made(["Good", "bad", "good ", "odd", "Odd", "odd", "fine"], [1, 0, 1, 1, 0, 1, 1])
    kept = drop_repeats(examples)
    assert (kept.texts, kept.labels.tolist()) == (["Good", "bad", "fine"], [1, 0, 1])


def test_repeats_of_pairs_compare_both_texts():
    kept = drop_repeats(made(["a", "a", "a"], [0, 1, 0], ["x", "y", "X"]))
    assert (kept.texts, kept.pairs, kept.labels.tolist()) == (["a", "a"], ["x", "y"], [0, 1])

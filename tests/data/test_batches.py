from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpaf_jax.data import BUCKETS, Encoded, eval_batches, steps_per_epoch, train_batches
from lpaf_jax.data.batches import bucket_length

PAD = 9


def made(lengths, max_length=64):
    """Example i holds the tokens 1000 + i, so that rows can be told apart."""
    return Encoded(
        ids=[np.full(length, 1000 + i, dtype=np.int32) for i, length in enumerate(lengths)],
        types=[(np.arange(length) % 2).astype(np.int32) for length in lengths],
        labels=np.arange(len(lengths), dtype=np.int32),
        max_length=max_length,
        pad_id=PAD,
    )


def varied(n, seed=0):
    return made(np.random.default_rng(seed).integers(3, 65, size=n))


def real_rows(batches):
    return [int(label) for b in batches for label in b["labels"][b["weight"] > 0]]


def same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def test_a_batch_holds_its_examples_padded_and_masked():
    [batch] = eval_batches(made([3, 5], max_length=8), 4, buckets=(6, 8))
    short = [1000] * 3 + [PAD] * 3
    long = [1001] * 5 + [PAD]
    assert batch["input_ids"].tolist()[:2] == [short, long]
    assert batch["attention_mask"].tolist()[:2] == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]
    assert batch["token_type_ids"].tolist()[:2] == [[0, 1, 0, 0, 0, 0], [0, 1, 0, 1, 0, 0]]
    assert batch["labels"].tolist()[:2] == [0, 1]
    assert batch["weight"].tolist() == [1, 1, 0, 0]
    # a filling row with nothing to attend to would turn the softmax into NaN
    assert batch["attention_mask"].sum(axis=1).min() > 0
    assert {key: str(value.dtype) for key, value in batch.items()} == {
        "input_ids": "int32",
        "attention_mask": "int32",
        "token_type_ids": "int32",
        "labels": "int32",
        "weight": "float32",
    }


@pytest.mark.parametrize(
    "labels",
    [np.float32([0.5, 2.75, 5]), np.int32([[1, 2], [0, 0], [3, 4]])],
    ids=["values", "spans"],
)
def test_labels_of_every_kind_pass_through(labels):
    encoded = replace(made([5, 3, 4]), labels=labels)
    [batch] = eval_batches(encoded, 4)
    np.testing.assert_array_equal(batch["labels"], labels[[1, 2, 0, 0]])
    assert batch["labels"].dtype == labels.dtype
    np.testing.assert_array_equal(eval_batches(encoded, 4).restore(batch["labels"][:3]), labels)


@pytest.mark.parametrize(
    ("longest", "max_length", "expected"),
    [
        (1, 64, 24),
        (24, 64, 24),
        (25, 64, 32),
        (64, 64, 64),
        (33, 40, 40),
        (3, 8, 8),
        (513, 1024, 1024),
    ],
)
def test_a_bucket_is_the_smallest_that_fits_and_never_above_the_maximum(
    longest, max_length, expected
):
    assert bucket_length(longest, max_length, BUCKETS) == expected


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 64), min_size=1, max_size=150),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 100),
)
def test_every_pass_is_whole_and_of_few_shapes(lengths, batch_size, seed, epoch):
    encoded = made(lengths)
    train = train_batches(encoded, batch_size, seed=seed, epoch=epoch)
    held = eval_batches(encoded, batch_size)
    n = len(lengths)
    assert len(train) == steps_per_epoch(n, batch_size)
    assert len(set(real_rows(train))) == len(real_rows(train)) == min(n, len(train) * batch_size)
    assert sorted(real_rows(held)) == list(range(n))
    for batches in (train, held):
        for batch, length in zip(batches, batches.lengths, strict=True):
            assert batch["input_ids"].shape == (batch_size, length)
            longest = batch["attention_mask"].sum(axis=1).max()
            assert length == min(b for b in (24, 32, 48, 64) if b >= longest)


def test_an_epoch_depends_on_seed_and_epoch_alone():
    encoded = varied(200)
    first = train_batches(encoded, 16, seed=3, epoch=1)
    np.random.default_rng(0).random()
    same(first, train_batches(encoded, 16, seed=3, epoch=1))
    for other in ({"seed": 3, "epoch": 2}, {"seed": 4, "epoch": 1}, {"seed": 1, "epoch": 3}):
        assert real_rows(first) != real_rows(train_batches(encoded, 16, **other))


def test_a_pass_continues_anywhere_as_if_it_had_not_stopped():
    batches = train_batches(varied(200), 16, seed=0, epoch=0)
    assert len(batches[5:]) == 12 - 5
    same(list(batches)[5:], batches[5:])
    same([batches[-1]], batches[len(batches) - 1 :])
    with pytest.raises(IndexError):
        batches[12]


def test_the_examples_left_out_and_the_order_of_lengths_change_with_the_epoch():
    encoded = varied(100)
    passes = [train_batches(encoded, 32, seed=0, epoch=epoch) for epoch in range(5)]
    left_out = [frozenset(range(100)) - set(real_rows(batches)) for batches in passes]
    assert {len(left) for left in left_out} == {4}
    assert len(set(left_out)) == 5
    assert len({tuple(batches.lengths) for batches in passes}) > 1


def test_batches_are_not_fed_from_short_to_long():
    batches = train_batches(varied(64 * 30), 64, seed=0, epoch=0)
    assert batches.lengths != sorted(batches.lengths)
    halves = np.array(batches.lengths).reshape(2, -1).mean(axis=1)
    assert abs(halves[0] - halves[1]) < 16


def test_grouping_by_length_saves_most_of_the_padding():
    encoded = varied(3200)
    tokens = sum(len(ids) for ids in encoded.ids)
    padded = sum(train_batches(encoded, 32, seed=0, epoch=0).lengths) * 32
    # rows of 3 to 64 tokens in any order would nearly always be padded to 64, 1.9 times the tokens
    assert padded < 1.3 * tokens


def test_a_label_sorted_file_still_gives_mixed_batches():
    encoded = made([20] * 400)
    batches = train_batches(encoded, 20, seed=0, epoch=0)
    upper_half = [np.mean(batch["labels"] >= 200) for batch in batches]
    assert 0 not in upper_half
    assert 1 not in upper_half


def test_restore_puts_outputs_back_in_the_order_of_the_data():
    encoded = varied(50)
    batches = eval_batches(encoded, 8)
    outputs = np.concatenate([b["input_ids"][b["weight"] > 0][:, :1] * [1, -1] for b in batches])
    expected = np.arange(1000, 1050)[:, None] * [1, -1]
    assert (outputs != expected).any()
    np.testing.assert_array_equal(batches.restore(outputs), expected)


def test_building_a_batch_leaves_the_data_alone():
    encoded = varied(10)
    batch = train_batches(encoded, 4, seed=0, epoch=0)[0]
    for array in batch.values():
        array[:] = 0
    assert all((ids >= 1000).all() for ids in encoded.ids)
    assert encoded.labels.tolist() == list(range(10))


@pytest.mark.parametrize(("n", "batch_size"), [(0, 4), (3, 0)])
def test_nothing_to_batch_is_refused(n, batch_size):
    with pytest.raises(ValueError, match="cannot split"):
        train_batches(made([5] * n), batch_size, seed=0, epoch=0)
    with pytest.raises(ValueError, match="cannot split"):
        eval_batches(made([5] * n), batch_size)

import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import Encoded, eval_batches
from lpaf_jax.train import predict

LENGTHS = [3, 9, 5, 30, 31, 8, 26]


def data() -> Encoded:
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, 50, n).astype(np.int32) for n in LENGTHS]
    labels = np.zeros(len(ids), np.int32)
    return Encoded(ids, [0 * x for x in ids], labels, max_length=40, pad_id=0)


def test_logits_of_tokens_come_in_order_whatever_the_padding() -> None:
    encoded = data()
    assert len(set(eval_batches(encoded, 2).lengths)) > 1

    def forward(params, fixed, batch):
        ids = batch["input_ids"].astype(np.float32)
        return np.stack([ids, -ids], axis=-1)

    found = predict(forward, {}, encoded, 2)
    assert found.shape[0] == len(LENGTHS)
    for ids, row in zip(encoded.ids, found, strict=True):
        np.testing.assert_array_equal(row[: len(ids)], np.stack([ids, -ids], axis=-1))
        assert (row[len(ids) :] == -np.inf).all()


def test_logits_of_texts_are_left_as_they_are() -> None:
    encoded = data()
    found = predict(lambda p, f, batch: batch["input_ids"][:, :2], {}, encoded, 3)
    np.testing.assert_array_equal(found, [ids[:2] for ids in encoded.ids])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_not_finite_are_refused(value: float) -> None:
    def forward(params, fixed, batch):
        return np.where(batch["input_ids"][:, :1] == data().ids[3][0], value, 0.0)

    with pytest.raises(LpafError, match="outputs are not finite"):
        predict(forward, {}, data(), 2)

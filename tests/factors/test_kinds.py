"""What a kind says of itself, and what the registry refuses."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax import factors
from lpaf_jax.checkpoints.remote_code import modeling_code
from lpaf_jax.core.errors import LpafError
from lpaf_jax.factors import KINDS, LOW_RANK, LowRankLinear, kind_at, register_kind
from lpaf_jax.models import parameters
from tests.factors.scaled import Scaled


def test_low_rank_counts_what_it_stores_and_computes() -> None:
    record = LOW_RANK.of_rank(3)
    assert LOW_RANK.size(record, (5, 7)) == 3 * (5 + 7)
    assert LOW_RANK.flop(record, (5, 7)) == 2 * 3 * (5 + 7)
    assert LOW_RANK.summary(record) == "3"


@pytest.mark.parametrize("bias", [True, False])
def test_an_empty_layer_has_the_shapes_of_a_full_one(bias: bool) -> None:
    record = LOW_RANK.of_rank(3)
    empty = LOW_RANK.empty(record, (5, 7), bias=bias)
    assert isinstance(empty, LowRankLinear)
    factors = {"a": jnp.ones((5, 3)), "b": jnp.ones((3, 7))}
    full = LOW_RANK.layer(factors, jnp.ones(7) if bias else None, record)
    shapes = [{p: x.shape for p, x in parameters(layer).items()} for layer in (empty, full)]
    assert shapes[0] == shapes[1]
    assert LOW_RANK.record(full) == record
    np.testing.assert_array_equal(LOW_RANK.dense(factors), np.full((5, 7), 3.0))
    assert full(jnp.ones((2, 5))).shape == (2, 7)


def test_a_layer_is_known_by_its_mark() -> None:
    assert kind_at("x.y", {"x.y.a": 0, "x.y.b": 0}) is LOW_RANK
    assert kind_at("x.y", {"x.y.kernel": 0, "x.z.a": 0}) is None


def test_a_mark_and_a_name_are_taken_once() -> None:
    twin = Scaled()
    twin.mark = LOW_RANK.mark
    with pytest.raises(LpafError, match="'a' marks low_rank already"):
        register_kind(twin)
    twin.name, twin.mark = LOW_RANK.name, "other"
    with pytest.raises(LpafError, match="'low_rank' is registered already"):
        register_kind(twin)
    files = Path(factors.__file__).parent.glob("*_torch.py")
    assert set(KINDS) == {file.stem.removesuffix("_torch") for file in files}
    assert KINDS["low_rank"] is register_kind(LOW_RANK)


def test_code_for_pytorch_that_cannot_travel(second_kind, tmp_path, monkeypatch) -> None:
    file = tmp_path / "code.py"
    monkeypatch.setattr(second_kind, "torch_file", file, raising=False)
    for code, words in (
        ('"""Code."""\n\nimport torch\n', "write `from torch import"),
        ('"""Code."""\n\n\ndef other(layer, record): ...\n', "defines no function scaled"),
    ):
        file.write_text(code)
        with pytest.raises(ValueError, match=words):
            modeling_code("gpt2", "GPT2LMHeadModel", ["scaled"])
    with pytest.raises(LpafError, match="unknown kind of factors 'wavelet'"):
        modeling_code("gpt2", "GPT2LMHeadModel", ["wavelet"])


def test_imports_are_those_of_the_kinds_that_are_used(second_kind) -> None:
    one, both = (modeling_code("gpt2", "GPT2LMHeadModel", k) for k in (["low_rank"], list(KINDS)))
    assert "from torch import nn\n" in one
    assert "from torch import Tensor, arange, cat, einsum, nn, ones, stack, zeros\n" in both
    assert both.count("from collections import OrderedDict\n") == 1
    compile(both, "modeling_lpaf.py", "exec")

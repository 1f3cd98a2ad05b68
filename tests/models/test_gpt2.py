"""Parity of GPT-2 with the PyTorch model of transformers, and what is its own."""

from typing import Any

import jax
import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model, save_model
from lpaf_jax.core.errors import LpafError
from lpaf_jax.models import Gpt2Config, Gpt2LanguageModel, parameters
from tests.decoders import GPT2, IDS, LEFT, LEFT_PLACES, RIGHT, assert_same, both, torch_outputs
from tests.programs import equations

SHAPE: dict[str, Any] = {
    name: GPT2[name] for name in ("vocab_size", "n_positions", "n_embd", "n_head")
}
SHAPE["n_layer"] = 1

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "narrow": {"n_inner": 24, "activation_function": "relu", "layer_norm_epsilon": 0.1},
    "untied": {"tie_word_embeddings": False, "scale_attn_by_inverse_layer_idx": True},
    "unscaled": {"scale_attn_weights": False, "activation_function": "gelu"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_language_models(tmp_path, jit, variant):
    pytest.importorskip("torch")
    ours, theirs = both(tmp_path, "GPT2LMHeadModel", **GPT2, **VARIANTS[variant])
    assert type(ours) is Gpt2LanguageModel
    assert (ours.lm_head is None) == (variant != "untied")
    assert_same(jit, ours, theirs)


def test_a_checkpoint_of_the_bare_model(tmp_path):
    """The first GPT-2 was published so: names have no prefix, and masks lie among the weights."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    ours, theirs = both(tmp_path, "GPT2LMHeadModel", **GPT2)
    tensors = theirs.transformer.state_dict()
    tensors |= {"h.0.attn.bias": torch.tril(torch.ones(1, 1, 20, 20))}
    save_file(tensors, tmp_path / "model.safetensors")
    for path, array in parameters(load_model(tmp_path)).items():
        np.testing.assert_array_equal(array, parameters(ours)[path], err_msg=path)


def test_classifiers(tmp_path, jit):
    pytest.importorskip("torch")
    ours, theirs = both(
        tmp_path, "GPT2ForSequenceClassification", **GPT2, num_labels=3, pad_token_id=0
    )
    assert ours.num_labels == 3
    assert_same(jit, ours, theirs)  # no token is the padding's: of the last place
    call = jit(lambda ids, mask, places: ours(ids, mask, position_ids=places))
    padded = IDS * RIGHT
    inputs = {"input_ids": padded, "attention_mask": RIGHT}
    expected = torch_outputs(theirs, **inputs)[0]
    assert expected.shape == (3, 3)
    np.testing.assert_allclose(jit(ours.__call__)(**inputs), expected, atol=1e-4)
    left = IDS * LEFT
    expected = torch_outputs(theirs, input_ids=left, attention_mask=LEFT, position_ids=LEFT_PLACES)[
        0
    ]
    np.testing.assert_allclose(call(left, LEFT, LEFT_PLACES), expected, atol=1e-4)


def test_a_classifier_without_a_token_of_padding(tmp_path, jit):
    pytest.importorskip("torch")
    ours, theirs = both(tmp_path, "GPT2ForSequenceClassification", **GPT2)
    call = jit(lambda ids, mask: ours(ids, mask))
    # PyTorch takes one text at a time then, and nothing tells it of padding.
    single = [torch_outputs(theirs, input_ids=IDS[i : i + 1, :n])[0] for i, n in enumerate((9, 5))]
    found = call(IDS[:2], RIGHT[:2])
    np.testing.assert_allclose(found, np.concatenate(single), atol=1e-4)


def test_what_is_saved_is_read_by_pytorch(tmp_path, jit):
    pytest.importorskip("torch")
    from transformers import GPT2LMHeadModel

    ours, _ = both(tmp_path / "theirs", "GPT2LMHeadModel", **GPT2)
    save_model(ours, tmp_path / "out", source=tmp_path / "theirs", label_names=None, card="")
    theirs, info = GPT2LMHeadModel.from_pretrained(
        tmp_path / "out", output_loading_info=True, attn_implementation="eager"
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_same(jit, ours, theirs.eval())


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("embd_pdrop", [(3, 9, 32)]),
        ("attn_pdrop", [(3, 4, 1, 9, 9)]),
        ("resid_pdrop", [(3, 9, 32), (3, 9, 32)]),
    ],
)
def test_dropout_is_where_pytorch_has_it(name, shapes):
    rates = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0, name: 0.5}
    model = Gpt2LanguageModel(Gpt2Config(**SHAPE, **rates), jax.random.key(0))

    def drawn(key: Any) -> list[tuple[int, ...]]:
        """Shapes of what was compared with the hash of its place."""
        program = equations(lambda key: model(IDS, key=key), key)
        found = [e.invars[0].aval for e in program if e.primitive.name == "ge"]
        return [x.shape for x in found if x.dtype == np.uint32]

    assert drawn(jax.random.key(0)) == shapes
    assert drawn(None) == []


def test_dropout_is_of_the_key(jit):
    model = Gpt2LanguageModel(Gpt2Config(**SHAPE), jax.random.key(0))
    call = jit(lambda key: model(IDS, key=key))
    first, again, other = (call(jax.random.key(i)) for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_a_text_longer_than_the_table():
    model = Gpt2LanguageModel(Gpt2Config(**{**SHAPE, "n_positions": 8}), jax.random.key(0))
    assert model.positions == 8
    with pytest.raises(LpafError, match="9 tokens exceed the 8 positions"):
        model(IDS)


def test_variants_that_are_not_built():
    for changes, message in (
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"activation_function": "swish2"}, "'swish2'"),
        ({"n_head": 5}, "n_embd is not a multiple of n_head"),
    ):
        with pytest.raises(LpafError, match=message):
            Gpt2Config.from_json({**SHAPE, **changes})

"""Exactly the kernels the paper factorizes, in the order of the model."""

import numpy as np
from safetensors.numpy import load_file

from lpaf_jax.models import compressible_layers, count_parameters, is_compressible, parameters

IN_A_BLOCK = {
    "attention.self.query": (32, 32),
    "attention.self.key": (32, 32),
    "attention.self.value": (32, 32),
    "attention.output.dense": (32, 32),
    "intermediate.dense": (32, 48),
    "output.dense": (48, 32),
}


def test_six_kernels_a_block_and_nothing_else(model):
    params = parameters(model)
    expected = {
        f"bert.encoder.layer.{i}.{name}.kernel": shape
        for i in range(2)
        for name, shape in IN_A_BLOCK.items()
    }
    assert {p: params[p].shape for p in params if is_compressible(p)} == expected
    assert compressible_layers(params) == sorted(p.removesuffix(".kernel") for p in expected)


def test_factors_are_compressible_and_biases_are_not(factorized, model):
    params = parameters(factorized)
    assert compressible_layers(params) == compressible_layers(parameters(model))
    chosen = {p for p in params if is_compressible(p)}
    assert chosen == {p for p in params if p.endswith((".a", ".b"))}


def test_factors_and_kernel_of_a_mixed_layer_are_one_layer(mixed):
    assert len(compressible_layers(parameters(mixed))) == 6


def test_names_that_only_look_alike():
    for path in (
        "bert.pooler.dense.kernel",
        "bert.embeddings.word_embeddings.weight",
        "classifier.kernel",
        "bert.encoder.layer.0.attention.self.query.bias",
        "bert.encoder.layer.0.output.LayerNorm.weight",
        "bert.encoder.layer.0.attention.output.dense.mask",
        "bert.decoder.layer.0.output.dense.kernel",
        "bert.myencoder.layer.0.output.dense.kernel",
        "roberta.classifier.dense.kernel",
        "distilbert.pre_classifier.kernel",
        "distilbert.transformer.layer.0.attention.q_lin.bias",
        "distilbert.transformer.layer.0.sa_layer_norm.weight",
    ):
        assert not is_compressible(path), path
    assert is_compressible("encoder.layer.11.output.dense.kernel")


def test_the_tenth_block_follows_the_ninth():
    params = {f"bert.encoder.layer.{i}.output.dense.kernel": np.zeros((1, 1)) for i in range(12)}
    assert compressible_layers(dict(reversed(params.items()))) == [
        f"bert.encoder.layer.{i}.output.dense" for i in range(12)
    ]


def test_counts_of_a_factorized_model(factorized):
    # Ranks 3, 4, 5, 6 in turn, blocks in order and the six layers of each by name.
    shapes = [IN_A_BLOCK[name] for name in sorted(IN_A_BLOCK)] * 2
    encoder = sum((3 + i % 4) * (m + n) for i, (m, n) in enumerate(shapes))
    counts = count_parameters(parameters(factorized))
    assert counts["encoder"] == encoder
    biases_and_norms = 2 * (5 * 32 + 48 + 4 * 32)
    embeddings = (61 + 20 + 2) * 32 + 2 * 32
    pooler_and_head = 32 * 32 + 32 + 3 * 32 + 3
    assert counts["total"] == encoder + biases_and_norms + embeddings + pooler_and_head


def test_counts_of_minilm(minilm, minilm_folder):
    params = parameters(minilm)
    counts = count_parameters(params)
    assert len(compressible_layers(params)) == 36
    assert counts["encoder"] == 6 * (4 * 384 * 384 + 2 * 384 * 1536) == 10_616_832
    stored = load_file(minilm_folder / "model.safetensors")
    file = sum(a.size for name, a in stored.items() if not name.endswith("position_ids"))
    head = 3 * 384 + 3
    assert counts["total"] == file + head
    assert round(counts["total"] / 1e6, 1) == 22.7

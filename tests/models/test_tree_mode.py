"""NNX is about to treat modules as trees: the whole way of a model must work there already."""

import json
import os
import subprocess
import sys
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np

from lpaf_jax.checkpoints import load_model, save_model
from lpaf_jax.linalg import LowRank
from lpaf_jax.models import (
    LowRankLinear,
    MixedLinear,
    as_function,
    fixed_arrays,
    layer_at,
    parameters,
    replace_layer,
    set_parameters,
)

ROOT = Path(__file__).parents[2]
QUERY = "bert.encoder.layer.0.attention.self.query"


def whole_way(source, target):
    """Logits at both draws of a model that is loaded, made mixed, factorized, saved and loaded."""
    model = load_model(source)
    ids = jnp.arange(6).reshape(2, 3)
    batch = {"input_ids": ids, "attention_mask": ids * 0 + 1, "token_type_ids": ids * 0}
    dense = layer_at(model, QUERY)
    kernel, bias = dense.kernel[...], dense.bias[...]
    factors = LowRank(kernel[:, :4], jnp.ones((4, 32)))
    replace_layer(model, QUERY, MixedLinear(kernel, kernel > 0, factors, bias))
    forward = jax.jit(jax.vmap(as_function(model), in_axes=(None, None, None, None, 0)))
    logits = forward(
        parameters(model), fixed_arrays(model), batch, None, jnp.asarray([[0.0], [1.0]])
    )
    replace_layer(model, QUERY, LowRankLinear(factors, bias))
    save_model(model, target, source=source, label_names=["a", "b", "c"], card="")
    again = load_model(target)
    for path, array in parameters(model).items():
        np.testing.assert_array_equal(parameters(again)[path], array)
    set_parameters(again, {"classifier.bias": jnp.zeros(3)})
    assert not parameters(again)["classifier.bias"].any()
    return logits.tolist()


def test_tree_mode_gives_the_same_logits(write_folder, tensors, tmp_path):
    folder = write_folder(tensors, num_hidden_layers=1)
    settings = {
        "NNX_GRAPH_MODE": "false",
        "NNX_GRAPH_UPDATES": "false",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, __file__, str(folder), str(tmp_path / "tree")],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    modes, tree = json.loads(done.stdout)
    assert modes == [False, False]
    here = whole_way(folder, tmp_path / "here")
    np.testing.assert_allclose(tree, here, atol=1e-6)
    assert not np.allclose(here[0], here[1])


if __name__ == "__main__":
    modes = [flax.config.nnx_graph_mode, flax.config.nnx_graph_updates]
    print(json.dumps([modes, whole_way(*map(Path, sys.argv[1:]))]))

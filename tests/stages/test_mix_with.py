"""Which matrices the factors are mixed with."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model
from lpaf_jax.models import fixed_arrays, parameters, set_parameters
from lpaf_jax.stages import Context, Factorize, FineTune, MixedTune, Prune
from lpaf_jax.stages.base import Place

PATH = "bert.encoder.layer.1.output.dense"


@pytest.mark.parametrize("mix_with", ["factorized", "finetuned"])
def test_the_matrix_beside_the_factors(finished: Path, mix_with: Any) -> None:
    folders = {name: finished / "stages" / name for name in ("dense", "pruned")}
    nothing: Any = None
    places = (
        Place(folders["dense"], FineTune()),
        Place(folders["pruned"], Prune()),
        Place(finished / "model", Factorize()),
    )
    context = Context(nothing, nothing, nothing, places, nothing, "tune")
    final = load_model(finished / "model")
    moved = jnp.full_like(parameters(final)[f"{PATH}.bias"], 0.25)  # as a solver or a tuning may
    set_parameters(final, {f"{PATH}.bias": moved})
    mixed = MixedTune(mix_with=mix_with)._mixed_model(context, final)
    found, pruned = parameters(mixed), parameters(load_model(folders["pruned"]))
    whole = parameters(load_model(folders["dense"]))
    source = pruned if mix_with == "factorized" else whole
    np.testing.assert_array_equal(found[f"{PATH}.kernel"], source[f"{PATH}.kernel"])
    np.testing.assert_array_equal(found[f"{PATH}.bias"], moved)
    np.testing.assert_array_equal(found[f"{PATH}.a"], parameters(final)[f"{PATH}.a"])
    pruned_away = [float(np.mean(np.asarray(mask) == 0)) for mask in fixed_arrays(mixed).values()]
    assert (max(pruned_away, default=0) > 0) == (mix_with == "factorized")

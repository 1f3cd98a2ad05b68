"""How wide the weights are drawn that no checkpoint gives."""

from typing import Any

import jax
import pytest

from lpaf_jax.checkpoints import load_model
from lpaf_jax.models import parameters
from lpaf_jax.models.families import FAMILIES
from tests.encoders import TINY, Tensors, WriteFolder

WIDE = 0.25
SHAPE: dict[str, Any] = {
    **TINY,
    "num_key_value_heads": 2,
    # DistilBERT and GPT-2 have names of their own.
    **dict.fromkeys(("dim", "n_embd"), 32),
    **dict.fromkeys(("n_layers", "n_layer"), 2),
    **dict.fromkeys(("n_heads", "n_head"), 4),
    "hidden_dim": 48,
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_draws_its_weights_as_wide_as_its_config_says(family: str) -> None:
    kind = FAMILIES[family]
    for fields, deviation in (({}, 0.02), ({"initializer_range": WIDE}, WIDE)):
        config = kind.config({**SHAPE, "model_type": family, **fields})
        for head in kind.heads.values():
            params = parameters(head(config, jax.random.key(0)))
            drawn = [x for x in params.values() if x.ndim == 2]
            assert min(x.std() for x in drawn) > 0.7 * deviation
            assert max(x.std() for x in drawn) < 1.3 * deviation


def test_a_new_head_is_drawn_as_wide(write_folder: WriteFolder, tensors: Tensors) -> None:
    folder = write_folder(tensors, initializer_range=WIDE)
    params = parameters(load_model(folder, num_labels=5))
    assert params["classifier.kernel"].std() == pytest.approx(WIDE, rel=0.3)

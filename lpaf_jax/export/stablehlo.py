"""A model as a compiled program of JAX's: runs where neither this library nor Flax is."""

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from safetensors.numpy import save_file

from lpaf_jax.checkpoints import load_model
from lpaf_jax.checkpoints.checkpoint import saved_config, write_beside
from lpaf_jax.checkpoints.tensors import share_weights
from lpaf_jax.core.files import atomic_dir, read_json
from lpaf_jax.models import as_function, parameters
from lpaf_jax.models.families import FAMILIES, family_name, head_of

PROGRAM, WEIGHTS, RUNNER = "model.stablehlo", "weights.safetensors", "run.py"
PLATFORMS = ("cpu", "cuda", "tpu")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def export_stablehlo(place: Path, out: Path, *, dtype: str | None = None) -> None:
    """Write the model in `place` into `out` as a `jax.export` artifact.

    `out` then holds the program, `model.stablehlo`, for CPU, CUDA and TPU and for any batch and
    any length up to the model's own limit; its weights beside it, `weights.safetensors`, factors as
    factors; `run.py`, which loads and runs both; config, tokenizer and a README.

    Args:
        place: folder of a model, dense or factorized.
        out: what stands there is replaced.
        dtype: "bfloat16" stores matrices so and computes in it; None and "float32" in float32.

    Raises:
        LpafError: the model cannot be loaded, or `out` cannot be written.

    Cost: the model is loaded whole, and traced once for each platform.
    """
    values = read_json(place / "config.json")
    model = load_model(place)
    narrow = dtype == "bfloat16"
    params = {
        path: np.asarray(x.astype(jnp.bfloat16) if narrow and x.ndim > 1 else x)
        for path, x in parameters(model).items()
    }
    program = _program(model, params)
    family = FAMILIES[family_name(values, str(place))]
    # No ranks: they would call for the code by which PyTorch reads factors.
    config = saved_config(values, family.architectures[head_of(model, family)], {})
    config["lpaf_positions"] = model.positions  # the runner says so where a text is longer
    with atomic_dir(out) as target:
        (target / PROGRAM).write_bytes(program.serialize())
        save_file(params, target / WEIGHTS)
        shutil.copyfile(str(files("lpaf_jax.export") / "stablehlo_runner.py"), target / RUNNER)
        write_beside(target, place, config, _readme(program, model, params))
        share_weights(target)


def _program(model: Any, params: dict[str, np.ndarray]) -> export.Exported:
    forward = as_function(model)
    batch, length = export.symbolic_shape("b, s", constraints=[f"s <= {model.positions}"])
    inputs = {name: jax.ShapeDtypeStruct((batch, length), jnp.int32) for name in _INPUTS}
    weights = {path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in params.items()}
    # A function of its own, for its name stands in the program.
    run = jax.jit(lambda params, batch: forward(params, {}, batch))
    return export.export(run, platforms=PLATFORMS)(weights, inputs)


def _readme(program: export.Exported, model: Any, params: dict[str, np.ndarray]) -> str:
    numbers = sum(x.size for x in params.values())
    kinds = sorted({str(x.dtype) for x in params.values()})
    return f"""# A model as a StableHLO program

`{PROGRAM}` is the forward pass, exported by `jax.export` (jax {jax.__version__}) for \
{", ".join(PLATFORMS)}; `{WEIGHTS}` holds its {numbers:,} weights ({", ".join(kinds)}), factors as \
factors, by the names the program knows them by. Batch size and length are free, the length up to \
{model.positions} tokens. It needs jax, safetensors, and flatbuffers, with which jax reads programs:

```
pip install jax safetensors flatbuffers
python {RUNNER} 101 2023 2003 102          # token ids -> logits, as one line of JSON
```

or in Python, with `{RUNNER}` beside you:

```python
from pathlib import Path

import numpy as np
from run import load

forward = load(Path("."))
ids = np.array([[101, 2023, 2003, 102]], np.int32)
logits = forward(ids)                      # attention mask and token types may follow
```

Inputs are `{"`, `".join(_INPUTS)}`, each (batch, length), int32; the mask is 1 for a token and 0 \
for padding; models without token types look at none. The output is the logits, float32: (batch, \
classes), of a language model (batch, length, vocabulary), of one that finds answers (batch, \
length, 2). Token ids come from `tokenizer.json` here, with \
the library `tokenizers`. A program can be read by jax for at least six months after the version \
that wrote it (calling convention {program.calling_convention_version}); export it again then.
"""

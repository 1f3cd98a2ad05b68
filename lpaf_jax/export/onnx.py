"""A model as an ONNX graph, by PyTorch's own exporter."""

import contextlib
import io
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lpaf_jax.checkpoints.checkpoint import saved_config, write_beside
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import atomic_dir, read_json
from lpaf_jax.models.families import FAMILIES, family_name, named_head

GRAPH = "model.onnx"
_NEEDED = ("torch", "onnx", "onnxscript")
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def export_onnx(place: Path, out: Path) -> None:
    """Write the model in `place` into `out` as `model.onnx`, its factors as factors, in float32.

    The graph is that of the PyTorch model of `transformers` whose factorized layers are those of
    their kind, written by `torch.onnx.export(dynamo=True)`; batch and length are free. Beside it
    lie config and tokenizer. A graph of more than 2 GB keeps its weights in `model.onnx.data`.

    Raises:
        LpafError: PyTorch, onnx or onnxscript is not installed, the model cannot be loaded, or
            `out` cannot be written.
    """
    absent = [name for name in _NEEDED if find_spec(name) is None]
    if absent:
        raise LpafError(
            f"--format onnx needs {', '.join(absent)}: pip install {' '.join(_NEEDED)} (with CUDA, "
            "several GB, unless you name a CPU build), or use --format stablehlo, which needs no "
            "further packages"
        )
    values = read_json(place / "config.json")
    family = FAMILIES[family_name(values, str(place))]
    head = named_head(values, family)
    if head is None:
        raise LpafError(f"{place} has no head: config.json names no architecture with one")
    # No ranks: they would call for the code by which PyTorch reads factors.
    config = saved_config(values, family.architectures[head], {})
    with atomic_dir(out) as target:
        _write(place, target / GRAPH)
        write_beside(target, place, config, _README)


def _write(place: Path, file: Path) -> None:
    import torch

    from lpaf_jax.checkpoints.torch_twin import takes_types, torch_twin

    model = torch_twin(place)
    names = _INPUTS if takes_types(model) else _INPUTS[:2]

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *given: Any) -> Any:
            found = self.model(**dict(zip(names, given, strict=True)))
            if hasattr(found, "logits"):
                return found.logits
            return torch.stack([found.start_logits, found.end_logits], -1)

    # Not 1: the exporter takes a side of 1 for one that is fixed.
    ids = torch.ones(2, 8, dtype=torch.long)
    # And three tensors: the exporter takes one that is given twice for one input.
    given = (ids, torch.ones_like(ids), torch.zeros_like(ids))[: len(names)]
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    with _silence():
        program = torch.onnx.export(
            Logits().eval(),
            given,
            dynamo=True,
            dynamic_shapes=(tuple(free for _ in names),),
            input_names=list(names),
            output_names=["logits"],
            verbose=False,
        )
    assert program is not None  # it is None for the exporter that was before
    large = sum(p.numel() * p.element_size() for p in model.parameters()) > 2**31 - 2**24
    program.save(str(file), external_data=large)


@contextlib.contextmanager
def _silence() -> Any:
    """The exporter tells of packages it could use, and of its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


_README = """# A model as an ONNX graph

`model.onnx` was written by PyTorch's exporter from the model of `transformers`, the factors
of its layers as factors, in float32. Batch size and length are free.

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
names = [given.name for given in session.get_inputs()]
ids = np.array([[101, 2023, 2003, 102]], np.int64)
values = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": ids * 0}
logits = session.run(None, {name: values[name] for name in names})[0]
```

The logits are (batch, classes), of a language model (batch, length, vocabulary), of one that finds
answers (batch, length, 2). Token ids come from `tokenizer.json` here, with the library
`tokenizers`.
"""

"""Transformer families in Flax NNX and their layers: nothing of files."""

from lpaf_jax.factors import LowRankLinear
from lpaf_jax.models.bert import BertClassifier, BertConfig
from lpaf_jax.models.compressible import (
    compressible,
    compressible_layers,
    count_parameters,
    is_compressible,
)
from lpaf_jax.models.functional import (
    as_function,
    fixed_arrays,
    layer_at,
    mixed_paths,
    parameters,
    replace_layer,
    set_parameters,
)
from lpaf_jax.models.gpt2 import Gpt2Classifier, Gpt2Config, Gpt2LanguageModel
from lpaf_jax.models.layers import Linear, MixedLinear
from lpaf_jax.models.llama import LlamaClassifier, LlamaConfig, LlamaLanguageModel

__all__ = [
    "BertClassifier",
    "BertConfig",
    "Gpt2Classifier",
    "Gpt2Config",
    "Gpt2LanguageModel",
    "Linear",
    "LlamaClassifier",
    "LlamaConfig",
    "LlamaLanguageModel",
    "LowRankLinear",
    "MixedLinear",
    "as_function",
    "compressible",
    "compressible_layers",
    "count_parameters",
    "fixed_arrays",
    "is_compressible",
    "layer_at",
    "mixed_paths",
    "parameters",
    "replace_layer",
    "set_parameters",
]

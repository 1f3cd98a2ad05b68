"""Transformer families in Flax NNX, the layers a factorization needs, checkpoints in and out."""

from lpaf_jax.factors import LowRankLinear
from lpaf_jax.models.bert import BertClassifier, BertConfig
from lpaf_jax.models.checkpoint import check_saved, load_extra, load_model, save_model
from lpaf_jax.models.compressible import (
    compressible,
    compressible_layers,
    count_parameters,
    is_compressible,
)
from lpaf_jax.models.factored import records_of
from lpaf_jax.models.functional import (
    as_function,
    layer_at,
    masks,
    mixed_paths,
    parameters,
    replace_layer,
    set_parameters,
)
from lpaf_jax.models.gpt2 import Gpt2Classifier, Gpt2Config, Gpt2LanguageModel
from lpaf_jax.models.hub import is_hub_id, packaged_minilm, resolve_model
from lpaf_jax.models.layers import Linear, MixedLinear
from lpaf_jax.models.llama import LlamaClassifier, LlamaConfig, LlamaLanguageModel
from lpaf_jax.models.walk import DecoderOnDisk

__all__ = [
    "BertClassifier",
    "BertConfig",
    "DecoderOnDisk",
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
    "check_saved",
    "compressible",
    "compressible_layers",
    "count_parameters",
    "is_compressible",
    "is_hub_id",
    "layer_at",
    "load_extra",
    "load_model",
    "masks",
    "mixed_paths",
    "packaged_minilm",
    "parameters",
    "records_of",
    "replace_layer",
    "resolve_model",
    "save_model",
    "set_parameters",
]

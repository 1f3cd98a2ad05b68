"""Finished models in the formats of other tools."""

from lpaf_jax.export.adapter import export_adapter, export_merged
from lpaf_jax.export.dense import export_dense
from lpaf_jax.export.factorized import export_factorized
from lpaf_jax.export.onnx import export_onnx
from lpaf_jax.export.push import push_model
from lpaf_jax.export.stablehlo import export_stablehlo
from lpaf_jax.export.tokens import add_tokens

__all__ = [
    "add_tokens",
    "export_adapter",
    "export_dense",
    "export_factorized",
    "export_merged",
    "export_onnx",
    "export_stablehlo",
    "push_model",
]

"""Folders of the Hugging Face format, in and out."""

from lpaf_jax.checkpoints.checkpoint import check_saved, load, load_extra, load_model, save_model
from lpaf_jax.checkpoints.factored import records_of
from lpaf_jax.checkpoints.hub import find_model, is_hub_id, resolve_model
from lpaf_jax.checkpoints.walk import DecoderOnDisk

__all__ = [
    "DecoderOnDisk",
    "check_saved",
    "find_model",
    "is_hub_id",
    "load",
    "load_extra",
    "load_model",
    "records_of",
    "resolve_model",
    "save_model",
]

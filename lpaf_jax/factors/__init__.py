"""What a weight can become: kinds of factors, each in a file of its own.

A new kind is a file here, which registers it, and its layer in PyTorch beside it, `NAME_torch.py`:
every module of this room is imported, and all else asks `KINDS`.
"""

from lpaf_jax.core.registry import import_modules
from lpaf_jax.factors.base import (
    KINDS,
    FactorKind,
    Places,
    Record,
    StoredAs,
    kind_at,
    kind_by_mark,
    kind_of,
    register_kind,
)
from lpaf_jax.factors.low_rank import LOW_RANK, LowRankLinear
from lpaf_jax.factors.low_rank_embedding import LOW_RANK_EMBEDDING
from lpaf_jax.factors.records import FIELDS, read_records, recorded
from lpaf_jax.factors.sliced import SLICED, Heads, SlicedLinear

# Those for PyTorch are read as text, or where torch is.
import_modules(__name__, skip="_torch")

__all__ = [
    "FIELDS",
    "KINDS",
    "LOW_RANK",
    "LOW_RANK_EMBEDDING",
    "SLICED",
    "FactorKind",
    "Heads",
    "LowRankLinear",
    "Places",
    "Record",
    "SlicedLinear",
    "StoredAs",
    "kind_at",
    "kind_by_mark",
    "kind_of",
    "read_records",
    "recorded",
    "register_kind",
]

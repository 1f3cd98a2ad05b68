"""What a `config.json` says of the factorized layers of a model, in either spelling."""

from collections.abc import Mapping
from typing import Any

from lpaf_jax.core.errors import LpafError
from lpaf_jax.factors.base import KINDS, Record

# From the path of a layer to its record; and, until there was more than one kind, to its rank.
_RECORDS, _RANKS = "lpaf_factors", "lpaf_ranks"
FIELDS = (_RECORDS, _RANKS)
"""The fields of `config.json` that speak of factors."""


def recorded(records: Mapping[str, Record]) -> dict[str, Any]:
    """The field of `config.json` that keeps `records`, by path of the layer."""
    return {_RECORDS: dict(records)}


def read_records(values: Mapping[str, Any], where: object) -> dict[str, Record]:
    """The records of the factorized layers by path; layers without one are dense.

    Args:
        values: a parsed `config.json`. Where it has ranks by path, these are of low rank.
        where: what a message calls its folder.

    Raises:
        LpafError: a field holds no records, or one is of a kind that is not known. Whether it fits
            its layer, `FactorKind.shapes` says.
    """
    ranks = _mapping(values, _RANKS, where)
    records = {path: {"kind": "low_rank", "rank": rank} for path, rank in ranks.items()}
    for path, record in _mapping(values, _RECORDS, where).items():
        kind = record.get("kind") if isinstance(record, Mapping) else None
        if not isinstance(record, Mapping) or not isinstance(kind, str):
            raise LpafError(f"{where}: {_RECORDS} in config.json has no kind for {path}")
        if kind not in KINDS:
            raise LpafError(
                f"{where}: config.json gives {path} the unknown kind {kind!r}; known kinds are "
                f"{', '.join(KINDS)}. One of your own must be a file in lpaf_jax/factors/"
            )
        records[path] = dict(record)
    return records


def _mapping(values: Mapping[str, Any], field: str, where: object) -> Mapping[str, Any]:
    found = values.get(field)
    if found is None:
        return {}
    if not isinstance(found, Mapping):
        raise LpafError(
            f"{where}: {field} in config.json must name layers by their paths; it is {found!r:.80}"
        )
    return found

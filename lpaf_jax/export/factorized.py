"""A factorized model in another dtype, its factors as factors."""

from pathlib import Path

from lpaf_jax.checkpoints.checkpoint import plain_tensors, saved_config
from lpaf_jax.checkpoints.contents import read_source
from lpaf_jax.checkpoints.tensors import read_tensor
from lpaf_jax.checkpoints.weight_files import refuse_pickled
from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.export.rewrite import card_of, noted, rewrite
from lpaf_jax.factors import read_records


def export_factorized(place: Path, out: Path, *, dtype: str | None) -> None:
    """Write the model in `place` into `out` with every number in `dtype`.

    The folder is of the same kind: `load_model` reads it, and PyTorch by the code that lies in it.
    One tensor at a time: memory holds it and a shard of 256 MiB at most.

    Args:
        place: folder of a factorized model.
        out: what stands there is replaced.
        dtype: of `rewrite.DTYPES`, for all floating-point tensors.

    Raises:
        LpafError: there are no factors, no dtype is named, a file is damaged, or `out` cannot be
            written.
    """
    refuse_pickled(place)
    source = read_source(place)
    tensors = plain_tensors(source)
    records = read_records(source.values, place)
    if not records:
        raise LpafError(f"{place} has no factors: use --format dense to store it in another dtype")
    if dtype is None:
        raise SettingError(("dtype",), "is missing: --format factorized changes only the dtype")
    rewrite(
        place,
        out,
        ((name, read_tensor(header.file, header.name)) for name, header in tensors.items()),
        saved_config(source.values, source.family.architectures[source.head], records)
        | {"dtype": dtype},
        dtype=dtype,
        card=noted(
            card_of(place),
            f"**Stored in {dtype}**: the weights were rounded to this dtype. Sizes and results "
            "below are those of the model before rounding.",
        ),
    )

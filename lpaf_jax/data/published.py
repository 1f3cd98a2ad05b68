"""Published data sets as columns: from the hub, or from a local copy of one."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data.contents import PACKED, check_unpacked
from lpaf_jax.data.tables import read_table
from lpaf_jax.data.values import Columns, decoded_column

# A split by its name.
Splits = Callable[[str], Columns]


def from_hub(task: str, hub_id: str, *config: str) -> Splits:
    """The splits of a data set of the hub, through the `datasets` library.

    Raises:
        LpafError: it cannot be fetched; or, when a split is asked for, it has none of that name.
    """
    import datasets

    try:
        with _quiet(datasets):
            loaded = datasets.load_dataset(hub_id, *config)
    except Exception as error:  # offline, blocked, renamed: the kinds change with the library
        raise LpafError(
            f"task {task} cannot be fetched from the hub ({hub_id}: {_first_line(error)}); give a "
            "local copy with data=FOLDER (--data FOLDER)"
        ) from None
    return _of_datasets(loaded, hub_id)


def from_folder(
    folder: Path,
    stems: Mapping[str, Sequence[str]],
    read: Callable[[Path], Columns],
    suffixes: Sequence[str] = (".parquet", ".csv", ".tsv"),
) -> Splits:
    """The splits of a local copy: what `datasets` saved, or a file for each split.

    Args:
        folder: the copy.
        stems: for each split, what its file may be called.
        read: reads one file.
        suffixes: endings of the files that `read` reads.

    Raises:
        LpafError: no folder, a damaged one; or, when a split is asked for, none or two of it.
    """
    if not folder.is_dir():
        check_unpacked(folder)
        raise LpafError(f"{folder} is not a folder; a local copy of a data set must be a folder")
    if not (folder / "dataset_dict.json").exists():
        return lambda split: read(_split_file(folder, split, stems[split], suffixes))
    import datasets

    try:
        with _quiet(datasets):
            saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # a damaged copy raises whatever its reader does
        raise LpafError(f"{folder} cannot be read by datasets: {_first_line(error)}") from None
    return _of_datasets(saved, str(folder))


def read_columns(path: Path, *, skip_broken: bool = False) -> Columns:
    """The columns of a .parquet, .csv or .tsv file; all values of the latter two are strings.

    Args:
        path: of the file.
        skip_broken: as of `read_table`.

    Raises:
        LpafError: the file cannot be read; or, when a column is asked for, it is not UTF-8 or has
            the name of another.
    """
    table = read_table(path, skip_broken=skip_broken)
    return Columns(table.columns, table.values, table.broken)


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Silence progress bars and the warning of every retry: the outcome is told once, by us."""
    bars = datasets.is_progress_bar_enabled()
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    datasets.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            datasets.enable_progress_bars()


def _of_datasets(saved: Any, where: str) -> Splits:
    def split(name: str) -> Columns:
        if name not in saved:
            raise LpafError(f"{where} has no split {name!r}; it has {', '.join(saved)}")

        def column(of: str) -> list[Any]:
            values = list(saved[name][of])
            return decoded_column(values, of, lambda rows: f"{where}, {name}, row {rows[0] + 1}")

        return Columns(saved[name].column_names, column)

    return split


def _split_file(folder: Path, split: str, stems: Sequence[str], suffixes: Sequence[str]) -> Path:
    # What the hub calls a split of one file.
    names = [*stems, f"{split}-00000-of-00001"]
    paths = [folder / f"{stem}{suffix}" for stem in names for suffix in suffixes]
    found = [path for path in paths if path.exists()]
    if len(found) != 1:
        for path in () if found else sorted(folder.iterdir()):
            if path.suffix.lower() in PACKED and path.with_suffix("") in paths:
                raise LpafError(f"{path} is packed, by its name: unpack it first")
        there = ", ".join(path.name for path in found) or "no file"
        wanted = " or ".join(stems)
        endings = ", ".join(suffixes[:-1]) + f" or {suffixes[-1]}"
        raise LpafError(
            f"{folder} has {there} for the split {split!r}; it needs one file {wanted} that ends "
            f"in {endings}"
        )
    return found[0]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__

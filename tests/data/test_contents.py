"""Files that are not what their names say, wherever rows or a text are taken."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import load_task, load_tokenizer, read_examples, read_squad, text_tokens
from lpaf_jax.data.contents import read_text
from tests.data.tokenizers_of_decoders import gpt2

TEXT = b"sentence,label\na,1\nb,0\n"


def zipped() -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        file.writestr("t.csv", TEXT)
    return held.getvalue()


def tarred() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as file:
        file.addfile(tarfile.TarInfo("t.csv"))
    return held.getvalue()


def parquet() -> bytes:
    held = io.BytesIO()
    pq.write_table(pa.table({"sentence": ["a", "b"], "label": [1, 0]}), held)
    return held.getvalue()


CONTENTS = {
    "gzip": (gzip.compress(TEXT, mtime=0), r"is packed \(gzip\): unpack it"),
    "bzip2": (bz2.compress(TEXT), r"is packed \(bzip2\): unpack it"),
    "xz": (lzma.compress(TEXT), r"is packed \(xz\): unpack it"),
    "zstandard": (b"\x28\xb5\x2f\xfd\x24\x15", r"is packed \(zstandard\): unpack it"),
    "zip": (
        zipped(),
        r"is packed \(zip\): unpack it first; if it is a spreadsheet, save",
    ),
    "tar": (tarred(), r"is packed \(tar\): unpack it"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
    "utf16": (TEXT.decode().encode("utf-16"), "is UTF-16, not UTF-8; save it as UTF-8"),
    # Zeros and ASCII alone: it would pass for UTF-8.
    "safetensors": (save({"w": np.zeros(9, np.float32)}), "is not text"),
}
READERS = {
    "t.csv": read_examples,
    "t.tsv": read_examples,
    "t.jsonl": read_examples,
    "t.json": read_examples,
    "t.txt": read_text,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("content", CONTENTS)
def test_what_is_packed_or_no_text_is_said(tmp_path: Path, name: str, content: str) -> None:
    held, message = CONTENTS[content]
    (tmp_path / name).write_bytes(held)
    with pytest.raises(LpafError, match=rf"{name} {message}") as caught:
        READERS[name](tmp_path / name)
    assert "\n" not in str(caught.value)


def test_parquet_under_another_name_is_said(tmp_path: Path) -> None:
    for name in ("t.csv", "t.txt"):
        (tmp_path / name).write_bytes(parquet())
        with pytest.raises(LpafError, match="is a parquet file: rename it to end in .parquet"):
            READERS[name](tmp_path / name)
    (tmp_path / "t.parquet").write_bytes(gzip.compress(parquet()))
    with pytest.raises(LpafError, match=r"t\.parquet is packed \(gzip\)"):
        read_examples(tmp_path / "t.parquet")


@pytest.mark.parametrize("text", ["BZh is a name", "PK is another", "PAR1 too", "7z", "\ufefftext"])
def test_a_text_that_begins_like_an_archive_is_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    assert read_text(tmp_path / "t.txt") == text.removeprefix("\ufeff")


def test_a_text_of_a_language_model_is_looked_at_before_it_is_streamed(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(gpt2(tmp_path / "m"))
    path = tmp_path / "t.txt"
    path.write_bytes(gzip.compress(TEXT, mtime=0))
    with pytest.raises(LpafError, match="unpack it"):
        text_tokens(tokenizer, path)  # not when the first of its tokens is asked for


@pytest.mark.parametrize("ending", [".gz", ".GZ", ".zip", ".bz2", ".xz", ".zst", ".tar.gz", ".tgz"])
def test_a_packed_task_is_known_by_its_name(ending: str) -> None:
    for read in (load_task, read_examples):
        with pytest.raises(LpafError, match=r"reviews\.csv\..* is packed, by its name: unpack it"):
            read(f"reviews.csv{ending}")


def test_a_spreadsheet_is_to_be_saved_as_csv(tmp_path: Path) -> None:
    path = tmp_path / "t.xlsx"
    path.write_bytes(zipped())
    for read in (load_task, read_examples):
        with pytest.raises(LpafError, match=r"t\.xlsx is packed \(zip\): .* save it as csv"):
            read(str(path))


def test_packed_copies_of_published_tasks_are_said(tmp_path: Path) -> None:
    (tmp_path / "QQP.zip").write_bytes(zipped())
    with pytest.raises(LpafError, match=r"QQP\.zip is packed \(zip\): unpack it"):
        load_task("qqp", data=tmp_path / "QQP.zip")
    (tmp_path / "train.tsv.gz").write_bytes(gzip.compress(TEXT, mtime=0))
    with pytest.raises(LpafError, match=r"train\.tsv\.gz is packed, by its name: unpack it"):
        load_task("qqp", data=tmp_path)
    for name in ("x.json", "x.json.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b'{"data": []}', mtime=0))
        with pytest.raises(LpafError, match=r"is packed \(gzip\): unpack it"):
            load_task("squad", data=tmp_path / name)
    with pytest.raises(LpafError, match=r"is packed \(gzip\): unpack it"):
        read_squad(tmp_path / "x.json")

"""What a file holds, by its first bytes: text, or what only its name makes one."""

import re
from pathlib import Path

from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import LFS_POINTER

# Endings of packed files, for names; what is in a file is told by its first bytes.
PACKED = (".gz", ".tgz", ".zip", ".bz2", ".xz", ".zst", ".7z", ".rar", ".lz4", ".tar")

_MAGIC = re.compile(
    rb"(?P<gzip>\x1f\x8b)|(?P<zip>PK\x03\x04)|(?P<bzip2>BZh[1-9]1AY&SY)|(?P<xz>\xfd7zXZ\x00)"
    rb"|(?P<zstandard>\x28\xb5\x2f\xfd)|(?P<lz4>\x04\x22\x4d\x18)|(?P<rar>Rar!\x1a)"
    rb"|(?P<seven>7z\xbc\xaf\x27\x1c)|(?P<tar>.{257}ustar)|(?P<lfs>" + LFS_POINTER + rb")",
    re.DOTALL,
)
# A text does not begin with a byte of zero; headers of binary formats nearly all hold one.
_HEAD = 512


def check_unpacked(path: Path, head: bytes | None = None) -> None:
    """Raise LpafError if a file is packed, or only stands for one; `head` are its first bytes.

    What is no file at all passes.
    """
    found = _MAGIC.match(_head(path) if head is None else head)
    if found is None:
        return
    if found.lastgroup == "lfs":
        raise LpafError(f"{path} is a pointer of Git LFS, not the file: fetch it (git lfs pull)")
    kind = "7-Zip" if found.lastgroup == "seven" else found.lastgroup
    sheet = "; if it is a spreadsheet, save it as csv" if kind == "zip" else ""
    raise LpafError(f"{path} is packed ({kind}): unpack it first{sheet}")


def check_text(path: Path, head: bytes | None = None) -> None:
    """Raise LpafError if a file is packed or no text; `head` are its first bytes.

    What is no file at all passes.
    """
    head = (_head(path) if head is None else head)[:_HEAD]
    check_unpacked(path, head)
    if head.startswith(b"PAR1\x15"):
        raise LpafError(f"{path} is a parquet file: rename it to end in .parquet")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise LpafError(f"{path} is UTF-16, not UTF-8; save it as UTF-8")
    if b"\0" in head:
        raise LpafError(f"{path} is not text (it begins with zero bytes, as binary files do)")


def read_text(path: Path) -> str:
    """A whole text.

    Raises:
        LpafError: the file is missing, unreadable, packed, no text or not UTF-8.
    """
    try:
        held = path.read_bytes()
        check_text(path, held)
        return held.decode("utf-8-sig")
    except FileNotFoundError:
        raise LpafError(f"{path} does not exist") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise LpafError(
            f"{path} is not UTF-8 (byte {error.start} is 0x{error.object[error.start]:02x}) in "
            f"line {line}; save it as UTF-8"
        ) from None
    except OSError as error:
        raise LpafError(f"{path} cannot be read: {error.strerror or error}") from None


def refuse_packed(path: Path) -> None:
    """Raise LpafError if a file, of which there may be none, is packed or is called as one."""
    check_unpacked(path)
    if path.name.lower().endswith(PACKED):
        raise LpafError(f"{path} is packed, by its name: unpack it first")


def _head(path: Path) -> bytes:
    if not path.is_file():  # a pipe gives its first bytes only once
        return b""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise LpafError(f"{path} cannot be read: {error.strerror or error}") from None

"""What a compression without training is known by when it goes on, and what another one differs in.

A mark has the `fingerprint` of all that decides the result; the `settings`, and digests of what was
`read`, tell what two runs differ in.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from lpaf_jax.models import DecoderOnDisk
from lpaf_jax.models.weight_files import weight_files
from lpaf_jax.oneshot_settings import OneShot

_DECISIVE = ("params", "weighting", "ranks")
# By what was read: the settings that choose it, the first of them the place where it lies.
_CHOSEN_BY = {
    "config.json": ("model",),
    "weights": ("model",),
    "calibration text": ("calibration", "samples", "length", "seed", "text_column"),
    "held-out text": ("held_out", "samples", "length", "text_column"),
}


def mark_of(
    settings: OneShot,
    length: int,
    source: DecoderOnDisk,
    calibration: np.ndarray,
    held_out: np.ndarray | None,
) -> dict[str, Any]:
    """The mark of a run, as JSON values.

    Args:
        settings: of the run. length: tokens of a piece.
        source: its weights are known by their sizes and times.
        calibration: tokens. held_out: the same, if there are any.
    """
    chosen = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    files = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in weight_files(source.folder)]
    decisive = {name: chosen[name] for name in _DECISIVE}
    told = json.dumps([decisive, source.values, files], sort_keys=True).encode()
    texts = [b"" if text is None else text.tobytes() for text in (calibration, held_out)]
    read = [json.dumps(part, sort_keys=True).encode() for part in (source.values, files)] + texts
    return {
        "fingerprint": _digest(told + b"".join(texts)),
        "settings": chosen | {"length": length},
        "read": dict(zip(_CHOSEN_BY, map(_digest, read), strict=True)),
    }


def changes(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """What decides the result and is another in their mark than in ours, in brackets.

    Empty where their mark, of an earlier version, does not tell.
    """
    was, now = theirs.get("settings", {}), ours["settings"]
    known = theirs.get("read", {})
    differing = [name for name in now if name in was and was[name] != now[name]]
    found = [name for name in _DECISIVE if name in differing]
    texts = []
    for part, chosen_by in _CHOSEN_BY.items():
        if known.get(part) == ours["read"][part]:
            continue
        chosen = [name for name in chosen_by if name in differing]
        found += chosen
        if part in known and not chosen:
            texts.append(f"another {part} at {now[chosen_by[0]]}")
    told = [f"{name} {was[name]!r} there, {now[name]!r} now" for name in dict.fromkeys(found)]
    return f" ({', '.join(told + texts)})" if told + texts else ""


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()

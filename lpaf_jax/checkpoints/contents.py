"""What a model folder holds, held against what its config.json needs: no number is lost unsaid."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lpaf_jax.checkpoints.names import file_key, file_name, is_of_head, is_transposed
from lpaf_jax.checkpoints.tensors import Header, check_kind, hold_the_same, read_headers
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import read_json
from lpaf_jax.models.configs import quantized, refuse_quantized
from lpaf_jax.models.families import FAMILIES, Family, Head, default_head, family_name

_LOG = logging.getLogger(__name__)

# Tables that old versions of PyTorch's models stored, and that are computed: positions, token
# types, causal masks of GPT-2, frequencies of rotary embeddings.
_BUFFER = re.compile(
    r"(^|\.)(position_ids|token_type_ids|masked_bias|attn\.bias"
    r"|(original_)?inv_freq|(cos|sin)_cached)$"
)
# Where the keys of heads begin, of all tasks that models of our families are trained for.
_HEADS = {
    *("classifier", "pre_classifier", "score", "pooler", "qa_outputs", "cls", "lm_head"),
    *("vocab_transform", "vocab_layer_norm", "vocab_projector"),
    *("multiple_choice_head", "sop_classifier", "v_head"),
}
_LM_HEAD = "lm_head.weight"
_LORA = re.compile(r"(?i)(^|[._])(lora([_.ab]|$)|(loha|hada|lokr|ia3|vera|b?oft|dora)_)")
_QUANTIZED = re.compile(
    r"(^|\.)(SCB|weight_format|qweight|qzeros|g_idx|scales|zero_point|absmax|quant_map"
    r"|nested_absmax|nested_quant_map|[a-z_]+_(scales|blocks|scale_inv)"
    r"|weight_(scale|scale_2|zero_point|packed|shape|g_idx)|((in|out)put|[qkv])_scale|_data|_scale)$"
    r"|(^|\.)quant_state\."
)


class Contents(NamedTuple):
    """What a folder holds of the parameters of a model.

    Attributes:
        tensors: where each parameter that is there lies, by its path.
        unfit: of parameters of the head that are there in another shape: what is wrong.
        left: tensors that are read by nothing.
    """

    tensors: dict[str, Header]
    unfit: dict[str, str]
    left: list[Header]


class Source(NamedTuple):
    """A model folder before any number is read.

    Attributes:
        folder: where it lies.
        values: its parsed `config.json`. `tie_word_embeddings` is false where the head of a
            language model lies there and differs from the token embeddings, whatever the file says.
        family: what the model is of.
        head: that is read.
        headers: of all tensors, one of each parameter.
        copies: of those tensors that are there a second time.
    """

    folder: Path
    values: dict[str, Any]
    family: Family
    head: Head
    headers: list[Header]
    copies: list[Header]

    def by_key(self) -> dict[str, Header]:
        """The headers by what all names of a tensor have in common; see `file_key`.

        Of a tied pair safetensors stores one, by either name: it is the token embeddings here.
        """
        found = {file_key(header.name, self.family): header for header in self.headers}
        if self.family.block is not None and _LM_HEAD in found:
            table = file_key(f"{self.family.table}.weight", self.family)
            if table not in found and self.family.config(self.values).tie_word_embeddings:
                found[table] = found.pop(_LM_HEAD)
        return found

    def match(self, shapes: Mapping[str, tuple[int, ...]]) -> Contents:
        """Find the tensors of a model, and say which there are that it has no use for.

        Nothing is said of tables that are computed here, and of heads for other tasks.

        Args:
            shapes: of all its parameters, by path.

        Raises:
            LpafError: a tensor is missing, of the wrong shape or no float, but for those of the
                head.
        """
        paths = {file_key(file_name(path, shapes), self.family): path for path in shapes}
        found: dict[str, Header] = {}
        left: list[Header] = []
        for key, header in self.by_key().items():
            if key in paths:
                found[paths[key]] = header
            else:
                left.append(header)
        unfit = {}
        for path, header in list(found.items()):
            if problem := self._misfit(path, header, shapes):
                if not is_of_head(path, self.family):
                    raise LpafError(problem)
                unfit[path] = problem
                del found[path]
            else:
                check_kind(header.dtype, header.file, header.name)
        strange = self._strange(left, shapes)
        self._refuse_missing([path for path in shapes if path not in found], shapes, strange)
        if strange:
            _LOG.warning(
                "%s: %d tensors are not used (%s), as config.json has no place for them",
                self.folder,
                len(strange),
                _first(strange),
            )
        return Contents(found, unfit, left)

    def _misfit(
        self, path: str, header: Header, shapes: Mapping[str, tuple[int, ...]]
    ) -> str | None:
        shape, turned = shapes[path], is_transposed(path, self.family, shapes)
        if (header.shape[::-1] if turned else header.shape) == shape:
            return None
        return (
            f"{header.file}: tensor {header.name} has shape {header.shape}, which does not fit "
            f"config.json ({shape} expected, as (in, out))"
        )

    def _refuse_missing(
        self, absent: list[str], shapes: Mapping[str, tuple[int, ...]], strange: list[str]
    ) -> None:
        missing = [path for path in absent if not is_of_head(path, self.family)]
        if missing:
            first = file_name(missing[0], shapes)
            there = f"; unknown names instead: {_first(strange)}" if strange else ""
            raise LpafError(
                f"{self.folder}: {len(missing)} tensors are missing, such as {first}{there}"
            )

    def _strange(self, left: list[Header], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Names of tensors that should have had a place."""
        own = {file_key(path, self.family).partition(".")[0] for path in shapes}
        others = _HEADS - own - ({"lm_head"} if self.head == "lm" else set())
        keys = {header.name: file_key(header.name, self.family) for header in left}
        return [
            name
            for name, key in keys.items()
            # The head is a copy of the embeddings: were it another one, it would not be tied.
            if not _BUFFER.search(key) and key.partition(".")[0] not in others and key != _LM_HEAD
        ]


def read_source(folder: Path, head: Head | None = None) -> Source:
    """Read config.json and the headers of the weights.

    Args:
        folder: of a model, dense or factorized.
        head: None takes the one that config.json names, or else the first of the family.

    Raises:
        LpafError: a file is missing or damaged; the family is not known or has no such head; two
            tensors of one parameter differ; the folder is quantized, or updates of LoRA lie beside
            its weights.
    """
    values = read_json(folder / "config.json")
    name = family_name(values, str(folder))
    refuse_quantized(values, folder)
    family = FAMILIES[name]
    chosen = head or default_head(values, family)
    if chosen not in family.heads:
        raise LpafError(
            f"{folder}: {name} has no {chosen} head here; it has {', '.join(family.heads)}"
        )
    headers = read_headers(folder)
    _refuse_codes(folder, [header.name for header in headers])
    source = Source(folder, values, family, chosen, *_single(headers, family))
    return source._replace(values=values | _untied(source))


def _refuse_codes(folder: Path, names: list[str]) -> None:
    if found := [name for name in names if _LORA.search(name)]:
        raise LpafError(
            f"{folder} has LoRA weights that are not merged ({_first(found)}): call PEFT's "
            "merge_and_unload() and save the result; for an adapter in its own folder, use lpaf "
            "export --format merged"
        )
    if found := [name for name in names if _QUANTIZED.search(name)]:
        raise quantized(folder, f"it holds {_first(found)}")


def _single(headers: list[Header], family: Family) -> tuple[list[Header], list[Header]]:
    """The headers, and those of copies, as of a model saved with its wrapper and without."""
    found: dict[str, Header] = {}
    for header in headers:
        first = found.setdefault(file_key(header.name, family), header)
        if first is not header and not hold_the_same(first, header):
            places = (f"{h.name} in {h.file.name}" for h in (first, header))
            raise LpafError(
                f"{header.file.parent}: tensors {' and '.join(places)} are the same parameter but "
                "differ: remove the wrong one"
            )
    single = list(found.values())
    return single, [header for header in headers if found[file_key(header.name, family)] != header]


def _untied(source: Source) -> dict[str, Any]:
    """`tie_word_embeddings: false`, said, where the weights hold two matrices for the two uses."""
    family, values = source.family, source.values
    if source.head != "lm" or family.block is None:
        return {}
    if not family.config(values).tie_word_embeddings:
        return {}
    by_key = source.by_key()
    table = by_key.get(file_key(f"{family.table}.weight", family))
    head = by_key.get(_LM_HEAD)
    if table is None or head is None:
        return {}
    for header in (table, head):
        check_kind(header.dtype, header.file, header.name)
    if hold_the_same(table, head):
        return {}
    _LOG.warning(
        "%s: config.json ties the head to the token embeddings, but %s differs from %s: the head "
        "is read as untied",
        source.folder,
        head.name,
        table.name,
    )
    return {"tie_word_embeddings": False}


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")

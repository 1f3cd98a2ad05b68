"""The tokenizer in a model folder: its files, and the tokenizer that `transformers` makes of them.

The files may disagree: `tokenizer_config.json` overrides `tokenizer.json`, and by which settings
depends on the class of the tokenizer. What `AutoTokenizer` makes of a folder is what its model was
trained on, so all reading goes through it.
"""

import math
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import read_json, write_json
from lpaf_jax.models.families import FAMILIES, family_name

_WHOLE, _SETTINGS, _CONFIG = "tokenizer.json", "tokenizer_config.json", "config.json"
_VOCABULARIES = (_WHOLE, "vocab.txt", "vocab.json", "merges.txt", "tokenizer.model", "tekken.json")
TOKENIZER_FILES = (
    *_VOCABULARIES,
    _SETTINGS,
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)


def auto_tokenizer(folder: Path) -> Any:
    """The tokenizer that `AutoTokenizer` of `transformers` makes of a folder, code in it aside.

    Raises:
        LpafError: the folder holds no tokenizer, or one that cannot be read.
    """
    found = [name for name in _VOCABULARIES if (folder / name).is_file()]
    for name in (_CONFIG, _SETTINGS):  # damaged ones are named here, and no more below
        if (folder / name).is_file():
            read_json(folder / name)
    try:
        known = _from_files(folder)
        # Where there is no vocabulary, some classes make do with their special tokens.
        if not set(known.get_vocab()) - set(known.all_special_tokens):
            raise ValueError(f"{type(known).__name__} finds no vocabulary")
        if not known.is_fast:
            raise ValueError(f"{type(known).__name__} cannot be converted for `tokenizers`")
        return known
    except Exception as error:  # one of many kinds, by library version and tokenizer class
        raise LpafError(_unread(folder, found, error)) from None


def table_rows(folder: Path) -> tuple[float, float]:
    """How many tokens, and types of tokens, the model in a folder has embeddings for.

    Infinitely many where that is not known, or there is no such table.

    Raises:
        LpafError: there is no such family, or the model pads with a token that has none.
    """
    values = read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    if values.get("model_type") is None:
        return math.inf, math.inf
    family = FAMILIES[family_name(values, str(folder))]
    try:
        config = family.config(values)
    except LpafError:  # a model that is not built here: what loads it says so
        return math.inf, math.inf
    rows, pad = config.vocab_size, values.get("pad_token_id")
    if isinstance(pad, int) and pad >= rows:
        raise LpafError(
            f"{folder}: pad_token_id in config.json is {pad}, but the model has {rows} token "
            "embeddings; resize the embeddings, or give another one, or null"
        )
    return rows, getattr(config, "type_vocab_size", math.inf)


def name_tokenizer(source: Path, target: Path) -> None:
    """Make the copied tokenizer in `target`, a factorized folder, the same as that of `source`.

    `AutoTokenizer` goes by the type of the model, too, and does not know that of a factorized one.
    So such a folder names the class that it takes for `source`, and holds `tokenizer.json`.
    """
    if not any((target / name).is_file() for name in TOKENIZER_FILES):
        return
    # What cannot be read stays as it was: it is no reason to lose the weights.
    with suppress(LpafError):
        known = auto_tokenizer(source)
        if not (target / _WHOLE).is_file():
            known.save_pretrained(target)
        settings = read_json(target / _SETTINGS) if (target / _SETTINGS).is_file() else {}
        named = {"tokenizer_class": type(known).__name__}
        if not named.items() <= settings.items():
            write_json(target / _SETTINGS, settings | named)


def _from_files(folder: Path) -> Any:
    from transformers import (
        CONFIG_MAPPING,
        AutoConfig,
        AutoTokenizer,
        PreTrainedConfig,
        PreTrainedTokenizerFast,
    )

    values = read_json(folder / _CONFIG) if (folder / _CONFIG).is_file() else {}
    # A config of what the choice hangs on, no more: one that transformers refuses may lie in a
    # folder, or none, and a factorized folder would have its code run.
    chosen = {name: values[name] for name in ("model_name", "tokenizer_class") if name in values}
    kind = str(values.get("model_type"))
    known = kind in CONFIG_MAPPING
    config = AutoConfig.for_model(kind, **chosen) if known else PreTrainedConfig(**chosen)
    # Told not to trust code: it would ask at the console, in the middle of a run. Mistral's own
    # library, where it is installed, gives no offsets.
    place: Any = {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    place["trust_remote_code"] = False
    tokenizer = AutoTokenizer.from_pretrained(config=config, mistral_format=False, **place)
    if _is_misread(tokenizer, folder / _WHOLE):
        return PreTrainedTokenizerFast.from_pretrained(**place)
    return tokenizer


def _is_misread(tokenizer: Any, file: Path) -> bool:
    """Whether the class of `tokenizer` put the vocabulary of `file` into a model of another kind.

    `AutoTokenizer` may take the class of the model's type, and each makes one kind of model: a
    BPE, say, which knows no word of a WordLevel, as it has no merges. A WordLevel is a WordPiece
    that has whole words alone.
    """
    if not (file.is_file() and tokenizer.is_fast):
        return False
    stored = read_json(file).get("model", {}).get("type")
    made = type(tokenizer.backend_tokenizer.model).__name__
    return stored not in (None, made) and (stored, made) != ("WordLevel", "WordPiece")


def _unread(folder: Path, found: list[str], error: Exception) -> str:
    from tokenizers import Tokenizer

    reason = (str(error).strip() or type(error).__name__).split("\n")[0]
    if not found:
        return f"{folder} has no tokenizer; copy {_WHOLE} there"
    if _WHOLE in found:
        file = folder / _WHOLE
        try:
            Tokenizer.from_file(str(file))
        except Exception as damage:  # the library raises bare Exception
            return f"{file} is not a readable tokenizer: {damage}"
        return f"{file} and {_SETTINGS} beside it do not make a tokenizer: {reason}"
    what = f"{folder} has no readable tokenizer: it has only {', '.join(found)}"
    if "tokenizer.model" in found and find_spec("sentencepiece") is None:
        return f"{what}; install sentencepiece to read it, or copy {_WHOLE} there"
    return f"{what} ({reason}); copy {_WHOLE} there"

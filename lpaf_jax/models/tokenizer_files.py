"""The tokenizer in a model folder: its files, and what `transformers` has to be told of it.

`AutoTokenizer` takes the class that `tokenizer_config.json` names, or else that of the model's
type. The type of a factorized folder it does not know, and would read `tokenizer.json` as a
tokenizer without special tokens or token types, and a vocabulary alone not at all. So such a folder
names the class and holds `tokenizer.json`.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from lpaf_jax.files import read_json, write_json

_WHOLE, _SETTINGS = "tokenizer.json", "tokenizer_config.json"
TOKENIZER_FILES = (
    _WHOLE,
    _SETTINGS,
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "added_tokens.json",
    "chat_template.jinja",
)


def name_tokenizer(source: Path, target: Path, family: str, usual: str) -> None:
    """Make the copied tokenizer in `target` readable without the type of the model.

    Args:
        source: folder of the model that it came from.
        target: a factorized folder.
        family: model type of the dense model.
        usual: the class of tokenizers in `transformers` that models of this type have.
    """
    if not any((target / name).is_file() for name in TOKENIZER_FILES):
        return
    values = read_json(source / "config.json")
    if not (target / _WHOLE).is_file():
        # What cannot be read stays as it was: it is no reason to lose the weights.
        with suppress(Exception):
            _read(source, family, values).save_pretrained(target)
    settings = read_json(target / _SETTINGS) if (target / _SETTINGS).is_file() else {}
    if not settings.get("tokenizer_class"):
        named = values.get("tokenizer_class") or usual
        write_json(target / _SETTINGS, {**settings, "tokenizer_class": named})


def _read(source: Path, family: str, values: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoTokenizer

    # A config of its own: the folder may be factorized, and ask for code to be trusted.
    config = AutoConfig.for_model(family, tokenizer_class=values.get("tokenizer_class"))
    return AutoTokenizer.from_pretrained(str(source), config=config, trust_remote_code=False)

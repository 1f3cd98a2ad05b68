"""What a factorized folder needs so that `transformers` loads it with `trust_remote_code=True`.

`modeling_lpaf.py` beside this file is that code, spelled out for a BERT classifier. It is read as
text and never imported here: for another family and head the names of the classes are put in, and
for the kinds of factors that a model has, what each is in PyTorch.
"""

import ast
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

from lpaf_jax.factors import KINDS

MODELING_FILE = "modeling_lpaf.py"
# What of that file the kinds of factors take the place of.
_NOTE = "# What takes the place of a layer, by the kind in its record: KINDS[kind](layer, record)."
_TABLE = f"{_NOTE}\nKINDS = {{}}"
_WIDTH = 100
# End of a class name of transformers -> the Auto class that loads such a model.
_AUTO_CLASSES = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
}


def modeling_code(model_type: str, architecture: str, kinds: Iterable[str]) -> str:
    """Text of the `modeling_lpaf.py` that goes beside the weights.

    Args:
        model_type: family of the dense model, such as "gpt2".
        architecture: its class in transformers, such as "GPT2LMHeadModel".
        kinds: of the factors that the model has.

    Raises:
        LpafError: there is no such kind.
        ValueError: a kind imports in another way than `from ... import`.
    """
    stem, auto_class = _split(architecture)
    text = files(__package__).joinpath(MODELING_FILE).read_text(encoding="utf-8")
    names = {
        "AutoModelForSequenceClassification": auto_class,
        "BertForSequenceClassification": architecture,
        "Bert": stem,
        "lpaf_bert": f"lpaf_{model_type}",
    }
    # In one pass: what is put in may hold a name to be replaced, as DistilBert does.
    text = re.sub("|".join(names), lambda found: names[found[0]], text)
    chosen = sorted(set(kinds))
    return _composed(text, {k: KINDS[k].torch_file.read_text(encoding="utf-8") for k in chosen})


def remote_fields(model_type: str, architecture: str) -> dict[str, Any]:
    """What config.json says so that the `Auto` classes of `transformers` find that code.

    The arguments are as of `modeling_code`. Without these fields, or where the reader does not
    trust the code, the `Auto` classes refuse the folder.
    """
    stem, auto_class = _split(architecture)
    module = MODELING_FILE.removesuffix(".py")
    return {
        "model_type": f"lpaf_{model_type}",
        "architectures": [f"Lpaf{architecture}"],
        "auto_map": {
            "AutoConfig": f"{module}.Lpaf{stem}Config",
            "AutoModel": f"{module}.Lpaf{stem}Model",
            auto_class: f"{module}.Lpaf{architecture}",
        },
    }


def _composed(text: str, kinds: Mapping[str, str]) -> str:
    """`text` with the code of the kinds in the place of its empty table, and what that imports."""
    first, modules, rest = _parts(text)
    before, after = rest.split(_TABLE)
    bodies = []
    for name, code in kinds.items():
        _, imported, body = _parts(code)
        if f"def {name}(" not in body:
            raise ValueError(f"the code of {name} for PyTorch defines no function {name}")
        bodies.append(body)
        for module, names in imported.items():
            modules[module] = modules.get(module, set()) | names
    table = "KINDS = {" + ", ".join(f'"{name}": {name}' for name in kinds) + "}"
    code = "\n\n\n".join([*bodies, f"{_NOTE}\n{table}"])
    return f"{first}\n\n{_imports(modules)}\n\n\n{before}{code}{after}\n"


def _parts(code: str) -> tuple[str, dict[str, set[str]], str]:
    """A module's docstring, the names that it imports by module, and the rest."""
    lines, (docstring, *others) = code.splitlines(), ast.parse(code).body
    assert docstring.end_lineno is not None
    modules: dict[str, set[str]] = {}
    last = docstring.end_lineno
    for node in others:
        if isinstance(node, ast.Import):
            raise ValueError(f"in code that travels write `from {node.names[0].name} import ...`")
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            modules.setdefault(node.module, set()).update(alias.name for alias in node.names)
            last = node.end_lineno or last
    first = "\n".join(lines[: docstring.end_lineno])
    return first, modules, "\n".join(lines[last:]).strip("\n")


def _imports(modules: Mapping[str, set[str]]) -> str:
    """Import statements, those of the standard library first."""
    own = {m for m in modules if m.split(".")[0] in sys.stdlib_module_names}
    groups = (sorted(own), sorted(set(modules) - own))
    return "\n\n".join("\n".join(_import(m, modules[m]) for m in group) for group in groups)


def _import(module: str, names: set[str]) -> str:
    line = f"from {module} import {', '.join(sorted(names))}"
    if len(line) <= _WIDTH:
        return line
    return f"from {module} import (\n" + "".join(f"    {n},\n" for n in sorted(names)) + ")"


def _split(architecture: str) -> tuple[str, str]:
    """("GPT2", "AutoModelForCausalLM") of "GPT2LMHeadModel"."""
    for end, auto_class in _AUTO_CLASSES.items():
        if architecture.endswith(end):
            return architecture.removesuffix(end), auto_class
    raise ValueError(f"the head of {architecture} is not supported")

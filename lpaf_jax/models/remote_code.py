"""What a factorized folder needs so that `transformers` loads it with `trust_remote_code=True`.

`modeling_lpaf.py` beside this file is that code, spelled out for a BERT classifier. It is read as
text and never imported here: for another family and head the names of the classes are put in.
"""

import re
from importlib.resources import files
from typing import Any

MODELING_FILE = "modeling_lpaf.py"
# End of a class name of transformers -> the Auto class that loads such a model.
_AUTO_CLASSES = {
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
}


def modeling_code(model_type: str, architecture: str) -> str:
    """Text of the `modeling_lpaf.py` that goes beside the weights.

    Args:
        model_type: family of the dense model, such as "gpt2".
        architecture: its class in transformers, such as "GPT2LMHeadModel".
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
    return re.sub("|".join(names), lambda found: names[found[0]], text)


def remote_fields(model_type: str, architecture: str) -> dict[str, Any]:
    """What config.json says so that the `Auto` classes of `transformers` find that code.

    The arguments are those of `modeling_code`. Without these fields, or where the reader does not
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


def _split(architecture: str) -> tuple[str, str]:
    """("GPT2", "AutoModelForCausalLM") of "GPT2LMHeadModel"."""
    for end, auto_class in _AUTO_CLASSES.items():
        if architecture.endswith(end):
            return architecture.removesuffix(end), auto_class
    raise ValueError(f"no head of {architecture} is known here")

"""The families of models there are, by the `model_type` of their `config.json`.

A new family is one module and one row here.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from flax import nnx
from jax import Array

from lpaf_jax.core.errors import LpafError
from lpaf_jax.models.bert import BertClassifier, BertConfig, BertSpans
from lpaf_jax.models.distilbert import DistilBertClassifier, DistilBertConfig, DistilBertSpans
from lpaf_jax.models.gpt2 import Gpt2Block, Gpt2Classifier, Gpt2Config, Gpt2LanguageModel
from lpaf_jax.models.initial import Initializer
from lpaf_jax.models.llama import LlamaBlock, LlamaClassifier, LlamaConfig, LlamaLanguageModel
from lpaf_jax.models.roberta import RobertaClassifier, RobertaConfig, RobertaSpans

Head = Literal["classification", "span", "lm"]

# Before the `model_type` and the architecture of a factorized folder.
_TYPE, _ARCHITECTURE = "lpaf_", "Lpaf"


class Walk(NamedTuple):
    """How a decoder on disk is taken block by block.

    Attributes:
        blocks: path of the list of its blocks.
        block: `(config, init, index) -> block`.
        feed_forward: the layers of a block that give the channels between its feed-forward layers,
            and the one that takes them, by their paths in it.
        values: the layer that gives the values of attention, and the one that takes what it makes
            of them; None where values share a matrix with queries and keys. The config of such a
            family says `num_attention_heads`, `num_key_value_heads` and `head_dim`.
        width: what config.json calls the number of channels between the feed-forward layers.
    """

    blocks: str
    block: Callable[[Any, Initializer, int], nnx.Module]
    feed_forward: tuple[tuple[str, ...], str]
    values: tuple[str, str] | None = None
    width: str = "intermediate_size"


class Family(NamedTuple):
    """What the rest of the library needs to know of a family.

    Attributes:
        config: from a parsed `config.json`; raises LpafError for what is not built here.
        heads: `(config, key) -> model`, by the head it has. The first one is that of a folder
            whose config names none.
        architectures: what PyTorch calls the model, by head.
        prefix: of all parameters below the head, which a checkpoint without a head leaves out.
        table: path of the layer of token embeddings.
        as_stored: whether the kernel of the layer at a path lies in the file as (in, out), as
            Conv1D of GPT-2 has it; other linear layers are stored (out, in).
        walk: of a family of decoders.
    """

    config: Callable[[dict[str, Any]], Any]
    heads: Mapping[Head, Callable[[Any, Array], nnx.Module]]
    architectures: Mapping[Head, str]
    prefix: str
    table: str
    as_stored: Callable[[str], bool] = lambda layer: False
    walk: Walk | None = None


def _gpt2_stored(layer: str) -> bool:
    return layer.rpartition(".")[2] in ("c_attn", "c_fc", "c_proj")


def _llama(name: str) -> Family:
    """A model of the shape of Llama, whose classes PyTorch calls by `name`."""
    return Family(
        LlamaConfig.from_json,
        {"lm": LlamaLanguageModel, "classification": LlamaClassifier},
        {"lm": f"{name}ForCausalLM", "classification": f"{name}ForSequenceClassification"},
        prefix="model",
        table="model.embed_tokens",
        walk=Walk(
            "model.layers",
            LlamaBlock,
            (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj"),
            ("self_attn.v_proj", "self_attn.o_proj"),
        ),
    )


FAMILIES: dict[str, Family] = {
    "bert": Family(
        BertConfig.from_json,
        {"classification": BertClassifier, "span": BertSpans},
        {"classification": "BertForSequenceClassification", "span": "BertForQuestionAnswering"},
        prefix="bert",
        table="bert.embeddings.word_embeddings",
    ),
    "gpt2": Family(
        Gpt2Config.from_json,
        {"lm": Gpt2LanguageModel, "classification": Gpt2Classifier},
        {"lm": "GPT2LMHeadModel", "classification": "GPT2ForSequenceClassification"},
        prefix="transformer",
        table="transformer.wte",
        as_stored=_gpt2_stored,
        walk=Walk("transformer.h", Gpt2Block, (("mlp.c_fc",), "mlp.c_proj"), width="n_inner"),
    ),
    "llama": _llama("Llama"),
    "mistral": _llama("Mistral"),
    "qwen2": _llama("Qwen2"),
    "qwen3": _llama("Qwen3"),
    "roberta": Family(
        RobertaConfig.from_json,
        {"classification": RobertaClassifier, "span": RobertaSpans},
        {
            "classification": "RobertaForSequenceClassification",
            "span": "RobertaForQuestionAnswering",
        },
        prefix="roberta",
        table="roberta.embeddings.word_embeddings",
    ),
    "distilbert": Family(
        DistilBertConfig.from_json,
        {"classification": DistilBertClassifier, "span": DistilBertSpans},
        {
            "classification": "DistilBertForSequenceClassification",
            "span": "DistilBertForQuestionAnswering",
        },
        prefix="distilbert",
        table="distilbert.embeddings.word_embeddings",
    ),
}


def family_name(values: dict[str, Any], where: str) -> str:
    """The family that a parsed `config.json` is of, factorized or not.

    Args:
        values: the parsed file. where: what a message calls the folder.

    Raises:
        LpafError: there is no such family.
    """
    if not isinstance(values, Mapping):  # a damaged file may hold any JSON
        raise LpafError(f"{where}: config.json is not a JSON object; copy it there again")
    kind = values.get("model_type")
    name = str(kind).removeprefix(_TYPE)
    if name not in FAMILIES:
        raise LpafError(
            f"{where}: model_type {kind!r} is not supported; supported are {', '.join(FAMILIES)}"
        )
    return name


def named_head(values: dict[str, Any], family: Family) -> Head | None:
    """The head that the architectures in a parsed `config.json` name; None where it is none."""
    names = [str(name).removeprefix(_ARCHITECTURE) for name in values.get("architectures") or []]
    found = [head for head, name in family.architectures.items() if name in names]
    return found[0] if found else None


def default_head(values: dict[str, Any], family: Family) -> Head:
    """The head that a parsed `config.json` names, or else the first of the family."""
    named = named_head(values, family)
    return next(iter(family.heads)) if named is None else named


def head_of(model: nnx.Module, family: Family) -> Head:
    """The head that `model` has."""
    return next(head for head, kind in family.heads.items() if type(model) is kind)

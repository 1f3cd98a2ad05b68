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
from lpaf_jax.models.layouts import Layout
from lpaf_jax.models.llama import LlamaBlock, LlamaClassifier, LlamaConfig, LlamaLanguageModel
from lpaf_jax.models.roberta import RobertaClassifier, RobertaConfig, RobertaSpans

Head = Literal["classification", "span", "lm"]

# Before the `model_type` and the architecture of a factorized folder.
_TYPE, _ARCHITECTURE = "lpaf_", "Lpaf"


class Family(NamedTuple):
    """What the rest of the library needs to know of a family.

    Attributes:
        name: what people call it.
        config: from a parsed `config.json`; raises LpafError for what is not built here.
        heads: `(config, key) -> model`, by the head it has. The first one is that of a folder
            whose config names none.
        architectures: what PyTorch calls the model, by head.
        prefix: of all parameters below the head, which a checkpoint without a head leaves out.
        table: path of the layer of token embeddings.
        layout: of its blocks.
        as_stored: whether the kernel of the layer at a path lies in the file as (in, out), as
            Conv1D of GPT-2 has it; other linear layers are stored (out, in).
        block: `(config, init, index) -> block` of a family of decoders, which can be taken from
            disk block by block. Where values have a matrix of their own, its config says
            `num_attention_heads`, `num_key_value_heads` and `head_dim`.
    """

    name: str
    config: Callable[[dict[str, Any]], Any]
    heads: Mapping[Head, Callable[[Any, Array], nnx.Module]]
    architectures: Mapping[Head, str]
    prefix: str
    table: str
    layout: Layout
    as_stored: Callable[[str], bool] = lambda layer: False
    block: Callable[[Any, Initializer, int], nnx.Module] | None = None

    @property
    def blocks(self) -> str:
        """Path of the list of blocks."""
        return f"{self.prefix}.{self.layout.blocks}"


_BERT = Layout(
    "encoder.layer",
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output.dense",
    ("intermediate.dense",),
    "output.dense",
    "intermediate_size",
)
_DISTILBERT = Layout(
    "transformer.layer",
    *("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
    ("ffn.lin1",),
    "ffn.lin2",
    "hidden_dim",
)
_GPT2 = Layout(
    "h",
    *("attn.c_attn", "attn.c_attn", "attn.c_attn", "attn.c_proj"),
    ("mlp.c_fc",),
    "mlp.c_proj",
    "n_inner",
)
_LLAMA = Layout(
    "layers",
    *("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down_proj",
    "intermediate_size",
)


def _gpt2_stored(layer: str) -> bool:
    return layer.rpartition(".")[2] in ("c_attn", "c_fc", "c_proj")


def _llama(name: str) -> Family:
    """A model of the shape of Llama, whose classes PyTorch calls by `name`."""
    return Family(
        name,
        LlamaConfig.from_json,
        {"lm": LlamaLanguageModel, "classification": LlamaClassifier},
        {"lm": f"{name}ForCausalLM", "classification": f"{name}ForSequenceClassification"},
        prefix="model",
        table="model.embed_tokens",
        layout=_LLAMA,
        block=LlamaBlock,
    )


FAMILIES: dict[str, Family] = {
    "bert": Family(
        "BERT",
        BertConfig.from_json,
        {"classification": BertClassifier, "span": BertSpans},
        {"classification": "BertForSequenceClassification", "span": "BertForQuestionAnswering"},
        prefix="bert",
        table="bert.embeddings.word_embeddings",
        layout=_BERT,
    ),
    "gpt2": Family(
        "GPT-2",
        Gpt2Config.from_json,
        {"lm": Gpt2LanguageModel, "classification": Gpt2Classifier},
        {"lm": "GPT2LMHeadModel", "classification": "GPT2ForSequenceClassification"},
        prefix="transformer",
        table="transformer.wte",
        layout=_GPT2,
        as_stored=_gpt2_stored,
        block=Gpt2Block,
    ),
    "llama": _llama("Llama"),
    "mistral": _llama("Mistral"),
    "qwen2": _llama("Qwen2"),
    "qwen3": _llama("Qwen3"),
    "roberta": Family(
        "RoBERTa",
        RobertaConfig.from_json,
        {"classification": RobertaClassifier, "span": RobertaSpans},
        {
            "classification": "RobertaForSequenceClassification",
            "span": "RobertaForQuestionAnswering",
        },
        prefix="roberta",
        table="roberta.embeddings.word_embeddings",
        layout=_BERT,
    ),
    "distilbert": Family(
        "DistilBERT",
        DistilBertConfig.from_json,
        {"classification": DistilBertClassifier, "span": DistilBertSpans},
        {
            "classification": "DistilBertForSequenceClassification",
            "span": "DistilBertForQuestionAnswering",
        },
        prefix="distilbert",
        table="distilbert.embeddings.word_embeddings",
        layout=_DISTILBERT,
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

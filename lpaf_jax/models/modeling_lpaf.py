"""A transformer with some of its weight matrices stored as two thin factors.

This file comes with the weights, so that they load with torch and transformers alone:

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)

What it does, for whoever asks whether to trust it: it builds the ordinary model of transformers,
then puts two linear layers in the place of each layer that `lpaf_ranks` in config.json names.
Everything else, the loading of weights included, is what transformers does. Nothing here opens a
file or a connection, or runs code from anywhere else.

A layer `y = W x + c` with W of shape (n, m) becomes `y = up (down x) + c`, where `down.weight` is
(k, m) and `up.weight` is (n, k): k (m + n) numbers in the place of m n.

Tried with transformers 5.23.
"""

from collections import OrderedDict
from typing import Any

from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
)


class LpafBertConfig(BertConfig):
    """The configuration of the ordinary model, and the rank k of each factorized layer."""

    model_type = "lpaf_bert"
    # From the path of a layer in the model with its head to its rank.
    lpaf_ranks: dict[str, int] | None = None
    # Tensor parallelism knows whole matrices and fails at two factors: each process keeps all.
    base_model_tp_plan = None


def factorize(model: PreTrainedModel) -> None:
    """Put two linear layers in the place of each layer that the configuration names."""
    prefix = f"{model.base_model_prefix}."
    for path, rank in (model.config.lpaf_ranks or {}).items():
        if model.base_model is model:  # without a head: paths begin a step further in
            if not path.startswith(prefix):
                continue
            path = path.removeprefix(prefix)
        layer = model.get_submodule(path)
        if isinstance(layer, nn.Sequential):  # in a body that has factorized itself
            continue
        # The Conv1D of GPT-2 keeps its weight as (in, out), and nn.Linear as (out, in).
        n, m = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.T.shape
        down = nn.Linear(m, rank, bias=False)
        up = nn.Linear(rank, n, bias=layer.bias is not None)
        model.set_submodule(path, nn.Sequential(OrderedDict(down=down, up=up)))


class LpafBertModel(BertModel):
    """The model without a head: hidden states."""

    config_class = LpafBertConfig
    base_model_prefix = BertForSequenceClassification.base_model_prefix

    def __init__(self, config: LpafBertConfig, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        factorize(self)


class LpafBertForSequenceClassification(BertForSequenceClassification):
    """The model with its head."""

    config_class = LpafBertConfig

    def __init__(self, config: LpafBertConfig, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)
        factorize(self)


# Some models with a head ask AutoModel for the one without, by the class of the configuration.
AutoModel.register(LpafBertConfig, LpafBertModel)

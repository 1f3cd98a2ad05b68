"""A transformer with some of its weight matrices stored as factors.

This file comes with the weights, so that they load with torch and transformers alone:

    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)

What it does, for whoever asks whether to trust it: it builds the ordinary model of transformers,
then puts what `KINDS` has for it in the place of each layer that `lpaf_factors` in config.json
names: a layer of fewer numbers, its weight stored as factors, or with channels gone. A head that
has the weight of token embeddings has their factors, too.
Everything else, the loading of weights included, is what transformers does. Nothing here opens a
file or a connection, or runs code from anywhere else.

Tried with transformers 5.23.
"""

from typing import Any

from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
)


class LpafBertConfig(BertConfig):
    """The configuration of the ordinary model, and a record of each factorized layer."""

    model_type = "lpaf_bert"
    # From the path of a layer in the model with its head to its kind of factors and their sizes.
    lpaf_factors: dict[str, dict[str, Any]] | None = None
    # Tensor parallelism knows whole matrices and fails at factors: each process keeps all.
    base_model_tp_plan = None


# What takes the place of a layer, by the kind in its record: KINDS[kind](layer, record).
KINDS = {}


def factorize(model: PreTrainedModel) -> None:
    """Put factors in the place of each layer that the configuration names."""
    prefix = f"{model.base_model_prefix}."
    for path, record in (model.config.lpaf_factors or {}).items():
        if model.base_model is model:  # without a head: paths begin a step further in
            if not path.startswith(prefix):
                continue
            path = path.removeprefix(prefix)
        layer = model.get_submodule(path)
        if hasattr(layer, "lpaf_kind"):  # in a body that has factorized itself
            continue
        if record["kind"] not in KINDS:
            raise ValueError(
                f"{path} has the kind {record['kind']!r}; this file supports only {list(KINDS)}"
            )
        factors = KINDS[record["kind"]](layer, record)
        factors.lpaf_kind = record["kind"]
        model.set_submodule(path, factors)
        if hasattr(factors, "tie"):
            factors.tie(model)


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

"""What `transformers` is told of the tokenizers in folders that it does not know."""

import pytest

from lpaf_jax.models.families import FAMILIES

pytest.importorskip("torch")


def test_classes_of_tokenizers_are_those_that_transformers_takes() -> None:
    from transformers.models.auto.tokenization_auto import (
        TOKENIZER_MAPPING_NAMES,
        tokenizer_class_from_name,
    )

    for name, family in FAMILIES.items():
        known = TOKENIZER_MAPPING_NAMES.get(name) or "TokenizersBackend"
        known = "TokenizersBackend" if known == "MistralCommonBackend" else known
        ours, theirs = map(tokenizer_class_from_name, (family.tokenizer, known))
        # That of DistilBERT is a kind of BERT's, without the token types that it has no use for.
        assert issubclass(ours, theirs), name

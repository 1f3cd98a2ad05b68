"""Tokenizers in the files of decoder models, trained on a few words."""

import json

WORDS = "the movie was good, and the actors were better than the script.\n\n  12345 films in 2016\n"
END = "<|endoftext|>"


def trained(model, trainer, pre_tokenizer, **parts):
    from tokenizers import Tokenizer

    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizer
    for name, part in parts.items():
        setattr(backend, name, part)
    backend.train_from_iterator([WORDS] * 3, trainer)
    return backend


def gpt2(folder):
    """Bytes, no token before a text and none to pad with, as GPT-2's files are."""
    from tokenizers import models, pre_tokenizers, processors, trainers

    backend = trained(
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    )
    backend.post_processor = processors.ByteLevel(trim_offsets=False)
    return write(folder, backend, {"eos_token": END, "bos_token": END}, {"eos_token_id": 0})


# How Llama 3 splits a text.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama3(folder):
    """Bytes, with a first token before a text; several tokens end one."""
    from tokenizers import Regex, models, pre_tokenizers, processors, trainers

    backend = trained(
        models.BPE(),
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[("<|begin_of_text|>", 0)],
    )
    return write(folder, backend, {}, {"eos_token_id": [1, 2], "pad_token_id": None})


def llama2(folder):
    """Marks for spaces, one of them before every text."""
    from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

    backend = trained(
        models.BPE(unk_token="<unk>", byte_fallback=False),
        trainers.BpeTrainer(
            vocab_size=90, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
        ),
        pre_tokenizers.Metaspace(prepend_scheme="first"),
        normalizer=normalizers.Sequence([]),
    )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    end = {"content": "</s>", "lstrip": False, "rstrip": False, "__type": "AddedToken"}
    return write(folder, backend, {"eos_token": end, "pad_token": None}, {"eos_token_id": 7})


def write(folder, backend, tokenizer_config, config):
    folder.mkdir()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    (folder / "config.json").write_text(json.dumps(config))
    return folder

"""Tasks, tokenization, batches and metrics: everything about text and labels, and no model."""

from lpaf_jax.data.batches import (
    BUCKETS,
    Batch,
    Batches,
    eval_batches,
    steps_per_epoch,
    train_batches,
)
from lpaf_jax.data.examples import LESS_IS_BETTER, METRICS, Examples, Kind, Task
from lpaf_jax.data.glue import GLUE
from lpaf_jax.data.language import Packed, is_text, pack, packed, split_text
from lpaf_jax.data.metrics import (
    classification_metrics,
    compare_paired,
    mean_kl,
    sign_flip,
    wilson_interval,
)
from lpaf_jax.data.scores import matthews_correlation, pearson, spearman, task_metrics
from lpaf_jax.data.span_scores import exact_match, normalise_answer, span_metrics, token_f1
from lpaf_jax.data.squad import SQUAD, Questions, read_squad
from lpaf_jax.data.tables import read_examples
from lpaf_jax.data.tasks import TASK_NAMES, check_task_name, load_task
from lpaf_jax.data.text import (
    TextWindow,
    encode_text,
    perplexity,
    sample_and_end,
    sample_blocks,
    text_batches,
    text_tokens,
    text_windows,
)
from lpaf_jax.data.tokenize import Encoded, Tokenizer, encode, load_tokenizer
from lpaf_jax.data.windows import Answer, Found, Windows, encode_questions, find_answers

__all__ = [
    "BUCKETS",
    "GLUE",
    "LESS_IS_BETTER",
    "METRICS",
    "SQUAD",
    "TASK_NAMES",
    "Answer",
    "Batch",
    "Batches",
    "Encoded",
    "Examples",
    "Found",
    "Kind",
    "Packed",
    "Questions",
    "Task",
    "TextWindow",
    "Tokenizer",
    "Windows",
    "check_task_name",
    "classification_metrics",
    "compare_paired",
    "encode",
    "encode_questions",
    "encode_text",
    "eval_batches",
    "exact_match",
    "find_answers",
    "is_text",
    "load_task",
    "load_tokenizer",
    "matthews_correlation",
    "mean_kl",
    "normalise_answer",
    "pack",
    "packed",
    "pearson",
    "perplexity",
    "read_examples",
    "read_squad",
    "sample_and_end",
    "sample_blocks",
    "sign_flip",
    "span_metrics",
    "spearman",
    "split_text",
    "steps_per_epoch",
    "task_metrics",
    "text_batches",
    "text_tokens",
    "text_windows",
    "token_f1",
    "train_batches",
    "wilson_interval",
]

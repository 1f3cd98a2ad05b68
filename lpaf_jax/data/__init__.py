"""Tasks, tokenization, batches and metrics: everything about text and labels, and no model."""

from lpaf_jax.data.batches import (
    BUCKETS,
    Batch,
    Batches,
    eval_batches,
    steps_per_epoch,
    train_batches,
)
from lpaf_jax.data.examples import METRICS, Examples, Kind, Task
from lpaf_jax.data.glue import GLUE
from lpaf_jax.data.metrics import classification_metrics, compare_paired, wilson_interval
from lpaf_jax.data.scores import matthews_correlation, pearson, spearman, task_metrics
from lpaf_jax.data.tables import read_examples
from lpaf_jax.data.tasks import TASK_NAMES, check_task_name, load_task
from lpaf_jax.data.tokenize import Encoded, Tokenizer, encode, load_tokenizer

__all__ = [
    "BUCKETS",
    "GLUE",
    "METRICS",
    "TASK_NAMES",
    "Batch",
    "Batches",
    "Encoded",
    "Examples",
    "Kind",
    "Task",
    "Tokenizer",
    "check_task_name",
    "classification_metrics",
    "compare_paired",
    "encode",
    "eval_batches",
    "load_task",
    "load_tokenizer",
    "matthews_correlation",
    "pearson",
    "read_examples",
    "spearman",
    "steps_per_epoch",
    "task_metrics",
    "train_batches",
    "wilson_interval",
]

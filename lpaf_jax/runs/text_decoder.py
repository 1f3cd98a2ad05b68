"""A decoder that a text alone compresses, block by block from disk."""

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lpaf_jax.checkpoints import DecoderOnDisk, load_model
from lpaf_jax.checkpoints.checkpoint import saved_config, write_beside
from lpaf_jax.checkpoints.names import file_name
from lpaf_jax.checkpoints.tensors import ShardWriter, share_weights
from lpaf_jax.checkpoints.weight_files import bytes_of_weights
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import atomic_dir
from lpaf_jax.data import (
    Tokenizer,
    sample_and_end,
    sample_blocks,
    text_tokens,
    text_windows,
)
from lpaf_jax.factorization.blocks import compress_decoder
from lpaf_jax.factorization.dense import Plan, scratch_bytes
from lpaf_jax.factorization.store import Store
from lpaf_jax.factors import LOW_RANK
from lpaf_jax.importance import Subject
from lpaf_jax.models import compressible, parameters
from lpaf_jax.runs.settings import Settings
from lpaf_jax.runs.text_models import (
    COLUMN,
    JUDGED,
    Result,
    TextModel,
    is_packaged,
    packaged_texts,
)
from lpaf_jax.train import LANGUAGE


class Decoder(TextModel):
    """A decoder that is cut block by block; its finished blocks are kept in the folder `work`."""

    kind, metric = "language", "perplexity"

    def __init__(self, folder: Path):
        self._source = DecoderOnDisk(folder)
        self._folder = folder
        self.family, self.positions = self._source.name, self._source.positions
        self.shapes, self.matrices = self._source.shapes, self._source.matrices()
        self.codes = self._source.codes
        # What lies there and is no part of the model is lost by reading, not by compression.
        self.dense_bytes = (
            self._source.bytes_as_written()
            if self.codes
            else bytes_of_weights(folder) - self._source.unread_bytes
        )

    def check(self, settings: Settings) -> None:
        self._source.check_finite()

    def read(self, settings: Settings, tokenizer: Tokenizer, length: int) -> tuple[Any, Any]:
        assert settings.calibration is not None
        stream = _tokens(settings, tokenizer, settings.calibration, "train")
        if settings.held_out is None:
            chosen = (length, settings.samples, settings.seed)
            calibration, end = sample_and_end(stream, *chosen, JUDGED)
            return calibration, (end if len(end) else None)
        calibration = sample_blocks(stream, length, settings.samples, settings.seed)
        stream = _tokens(settings, tokenizer, settings.held_out, "test")
        whole = (w.ids for w in text_windows(stream, length) if len(w.ids) == length)
        found = list(islice(whole, settings.samples))
        if not found:
            raise LpafError(f"{settings.held_out} has less than the {length} tokens of one piece")
        return calibration, np.stack(found)

    def size(self, text: np.ndarray) -> tuple[int, int]:
        return len(text), text.size

    def bytes(self, text: np.ndarray) -> bytes:
        return text.tobytes()

    def scratch_bytes(self, settings: Settings, text: np.ndarray) -> int:
        return scratch_bytes(self._source, text, self._plan(settings, text))

    def cut(
        self,
        settings: Settings,
        calibration: np.ndarray,
        judged: np.ndarray,
        work: Path,
        say: Callable[[str], None],
    ) -> Result:
        plan, store = self._plan(settings, calibration), Store(work)
        texts = {"judged": judged}
        found = compress_decoder(self._source, calibration, plan, store, held_out=texts, say=say)
        return Result(found.cuts, found.perplexity["judged"])

    def _plan(self, settings: Settings, calibration: np.ndarray) -> Plan:
        stage = settings.factorize
        return Plan(
            **stage.choices(trained=False),
            block_epochs=stage.block_epochs,
            block_lr=stage.block_lr,
            seed=settings.seed,
            dense=lambda: self._dense(calibration),
        )

    def _dense(self, tokens: np.ndarray) -> Subject:
        """The whole model with the text, where an importance needs gradients of its weights."""
        model = load_model(self._folder, head="lm")

        def batches(count: int | None = None) -> Iterable[dict[str, np.ndarray]]:
            for ids in tokens[:count]:
                ones = np.ones_like(ids)[None]
                yield {
                    "input_ids": ids[None],
                    "attention_mask": ones,
                    "weight": np.ones(1, np.float32),
                }

        weights = compressible(parameters(model))
        return Subject(model, weights, {}, {}, {}, batches, LANGUAGE.loss)

    def assemble(self, result: Result, work: Path, folder: Path) -> None:
        """Put the folder together from the finished blocks and what lies in none."""
        source, store = self._source, Store(work)
        records = {
            cut.path: LOW_RANK.of_rank(cut.rank) for cut in result.cuts if cut.rank is not None
        }
        with atomic_dir(folder) as target:
            config = saved_config(source.values, source.architecture, records)
            dtype = source.values.get("dtype", source.values.get("torch_dtype"))
            config |= {} if dtype is None else {"dtype": dtype}
            write_beside(target, source.folder, config, "")
            writer = ShardWriter(target)
            for path in source.outside():
                writer.add(file_name(path, source.shapes), source.stored(path))
            for index in range(source.blocks):
                kept = store.block(index)
                assert kept is not None, f"block {index} is not finished"
                for name, value in kept[0].items():
                    writer.add(name, value)
            writer.close()
            share_weights(target)


def _tokens(
    settings: Settings, tokenizer: Tokenizer, text: Path, part: Literal["train", "test"]
) -> Iterable[np.ndarray]:
    source = packaged_texts(text, part) if is_packaged(text) else text
    return text_tokens(tokenizer, source, settings.text_column or COLUMN)

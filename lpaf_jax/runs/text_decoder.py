"""A decoder that a text alone compresses, block by block from disk."""

import math
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lpaf_jax.checkpoints import DecoderOnDisk, load_model, save_model
from lpaf_jax.checkpoints.checkpoint import dtype_in, saved_config, write_beside
from lpaf_jax.checkpoints.names import file_name
from lpaf_jax.checkpoints.tensors import ShardWriter, share_weights
from lpaf_jax.checkpoints.weight_files import bytes_of_weights
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import atomic_dir
from lpaf_jax.core.progress import Progress
from lpaf_jax.data import (
    METRICS,
    Task,
    Tokenizer,
    load_tokenizer,
    packed,
    sample_and_end,
    sample_blocks,
    text_tokens,
    text_windows,
)
from lpaf_jax.data.examples import unlabelled
from lpaf_jax.evaluation.four_bits import in_nf4
from lpaf_jax.factorization.blocks import compress_decoder
from lpaf_jax.factorization.dense import Plan, ranks_of, scratch_bytes
from lpaf_jax.factorization.embeddings import table_record
from lpaf_jax.factorization.store import Store
from lpaf_jax.factors import KINDS, Record
from lpaf_jax.importance import Subject
from lpaf_jax.models import compressible, parameters
from lpaf_jax.ranks import RANK_RULES
from lpaf_jax.recipes.base import FINAL
from lpaf_jax.runs.run import Run
from lpaf_jax.runs.settings import Settings
from lpaf_jax.runs.text_models import COLUMN, JUDGED, Result, TextModel, source_of
from lpaf_jax.runs.training import run_stage
from lpaf_jax.stages import FineTune
from lpaf_jax.stages.base import Place
from lpaf_jax.stages.trainer import score_of
from lpaf_jax.tasks.inputs import Inputs
from lpaf_jax.tasks.kinds import TaskSpec, judged_windows
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
        chosen = settings.factorize
        if chosen.rank is None:  # one that is too large leaves a matrix as it is
            chosen.planned(self.matrices, trained=False)
        if not RANK_RULES[chosen.ranks].needs_spectra:
            ranks_of(self._source, self._plan(settings, np.zeros((0, 0), np.int32)), {})
        if chosen.embeddings is not None:
            rows, hidden = self.shapes[f"{self._source.table}.weight"]
            table_record(chosen.embeddings_as, (rows, hidden), chosen.embeddings)
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
            raise LpafError(
                f"{settings.held_out} has fewer than the {length} tokens of one sequence: give "
                "more text, or a smaller --length"
            )
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
        progress: Progress,
    ) -> Result:
        plan, store = self._plan(settings, calibration), Store(work)
        texts = {"judged": judged}
        progress.busy("reading the model")
        found = compress_decoder(
            self._source,
            calibration,
            plan,
            store,
            held_out=texts,
            say=progress.say,
            told=progress.walk,
        )
        saved = 0
        if (table := store.table()) is not None:
            shape = self.shapes[f"{self._source.table}.weight"]
            saved = math.prod(shape) - sum(x.size for x in table[1].values())
        return Result(found.cuts, found.perplexity["judged"], saved)

    def _plan(self, settings: Settings, calibration: np.ndarray) -> Plan:
        stage = settings.factorize
        return Plan(
            **stage.choices(trained=False),
            channels=stage.channels,
            channels_by=stage.channels_by,
            embeddings=stage.embeddings,
            embeddings_as=stage.embeddings_as,
            pruned_to=stage.pruned_to,
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

    def tune(
        self,
        settings: Settings,
        calibration: np.ndarray,
        judged: np.ndarray,
        job: Run,
        progress: Progress,
    ) -> tuple[float, float]:
        """Train the factors, and all that is not factorized, on the text that they were fitted to.

        What fine-tuning leaves in a run with a task, the model as it is, is here the teacher. The
        model is read from the folder of the stage before the last one, and written to the last.

        Returns:
            its score, and the seconds it took.
        """
        steps, inputs = settings.steps_of_texts, self._inputs(settings, calibration, judged)
        training = settings.training
        if training.accumulate == 1:  # piece by piece: vocabularies are large
            training = training._replace(accumulate=training.batch)
        cut, final = steps[0][0], steps[1][0]
        before = (Place(self._folder, FineTune()), Place(job.stage(cut), settings.factorize))
        if not job.is_done(final):
            done = run_stage(job, steps, final, inputs, training, progress, before)
            model, extra = done.saved
            job.note_seconds(final, done.seconds)
            save_model(
                model,
                job.stage(final),
                source=job.stage(cut),
                label_names=None,
                card="",
                extra=extra,
                stored=self._dtype_of,
            )
            for each in done.opened:
                each.remove()
            del model, done
        progress.say("evaluate      the tuned model")
        saved = load_model(job.stage(final))
        seconds = job.seconds().get(final, 0.0)
        return score_of(saved, inputs.validation, 1)(parameters(saved)), seconds

    def in_nf4(
        self,
        settings: Settings,
        calibration: np.ndarray,
        judged: np.ndarray,
        final: Path,
        progress: Progress,
    ) -> dict[str, tuple[float, int]]:
        """The score of the dense and of the final model in four bits, and the bytes they save."""
        data, found = self._inputs(settings, calibration, judged).validation, {}
        for name, folder in (("dense", self._folder), (FINAL, final)):
            progress.say(f"evaluate      {name} model in NF4")
            model = load_model(folder, head="lm")
            params, saved = in_nf4(parameters(model), self._dtype_of)
            found[name] = score_of(model, data, 1)(params), saved
            del model, params  # one at a time
        return found

    def _dtype_of(self, path: str) -> np.dtype[Any]:
        """That of a parameter in the file; of a factor, that of the matrix it stands for."""
        layer = path.rpartition(".")[0]
        names = (path, f"{layer}.kernel", f"{layer}.weight")
        return self._source.stored_dtype(next(name for name in names if name in self.shapes))

    def _inputs(self, settings: Settings, calibration: np.ndarray, judged: np.ndarray) -> Inputs:
        tokenizer = load_tokenizer(self._folder)
        train, held = (
            judged_windows(packed(list(text), tokenizer.pad_id)) for text in (calibration, judged)
        )
        assert settings.calibration is not None
        metrics, nothing = METRICS["language"], unlabelled([])
        name = settings.calibration.stem
        return Inputs(
            source=self._folder,
            family=self.family,
            positions=self.positions,
            shapes=list(self.matrices.values()),
            biases=self.biases,
            weight_bytes=self.dense_bytes,
            task=Task(name, [], nothing, nothing, nothing, kind="language", metrics=metrics),
            spec=TaskSpec("language", train.max_length, [], metrics, None, 0, no_answer=False),
            classes=[],
            order=None,
            trains_head=False,
            train=train,
            validation=held,
            test=held,
        )

    def assemble(self, result: Result, work: Path, folder: Path) -> None:
        """Put the folder together from the finished blocks and what lies in none."""
        source, store = self._source, Store(work)
        records = {cut.path: cut.record for cut in result.cuts if cut.record is not None}
        table = store.table()
        width = None if table is not None else source.even_width(records)
        values, sliced = source.values, set[str]()
        if width is not None:  # an ordinary model, of which there is nothing more to say
            values, sliced, records = values | width, {f"{path}.weight" for path in records}, {}
        if table is not None:
            records[source.table] = table[0]
        with atomic_dir(folder) as target:
            config = saved_config(values, source.architecture, records)
            dtype = dtype_in(source.values)
            config |= {} if dtype is None else {"dtype": dtype}
            write_beside(target, source.folder, config, "")
            writer = ShardWriter(target)
            for path in source.outside():
                if table is not None and path == f"{source.table}.weight":
                    for name, value in _stored_table(source, *table).items():
                        writer.add(name, value)
                    continue
                writer.add(file_name(path, source.shapes), source.stored(path))
            for index in range(source.blocks):
                kept = store.block(index)
                assert kept is not None, f"block {index} is not finished"
                for name, value in kept[0].items():
                    turned = name in sliced and source.as_stored(name.removesuffix(".weight"))
                    writer.add(name, np.ascontiguousarray(value.T) if turned else value)
            writer.close()
            share_weights(target)


def _stored_table(
    source: DecoderOnDisk, record: Record, factors: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The factors of the token embeddings by their names in a file, as they lie there."""
    narrow, kind = source.stored_dtype(f"{source.table}.weight"), KINDS[record["kind"]]
    paths, found = [f"{source.table}.{leaf}" for leaf in factors], {}
    for path, (leaf, x) in zip(paths, factors.items(), strict=True):
        found[file_name(path, paths)] = np.ascontiguousarray(kind.filed(leaf, x)).astype(narrow)
    return found


def _tokens(
    settings: Settings, tokenizer: Tokenizer, text: Path, part: Literal["train", "test"]
) -> Iterable[np.ndarray]:
    return text_tokens(tokenizer, source_of(text, part), settings.text_column or COLUMN)

"""An encoder that a text alone compresses, in memory."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

from lpaf_jax.checkpoints import load_model, records_of, save_model
from lpaf_jax.checkpoints.factored import record_of
from lpaf_jax.checkpoints.weight_files import bytes_of_weights
from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.core.files import read_json
from lpaf_jax.core.progress import Progress, counted
from lpaf_jax.data import Batches, Encoded, Tokenizer, encode, eval_batches
from lpaf_jax.data.examples import unlabelled
from lpaf_jax.data.split import held_out
from lpaf_jax.data.tables import spread, text_lines
from lpaf_jax.factorization import factorize, to_factors
from lpaf_jax.factorization.blocks import output_error
from lpaf_jax.factorization.store import Cut
from lpaf_jax.importance import IMPORTANCES, Subject, activation_moments
from lpaf_jax.models import compressible, layer_at, parameters
from lpaf_jax.models.families import FAMILIES, family_name, named_head
from lpaf_jax.models.functional import inputs_of
from lpaf_jax.ranks import RANK_RULES
from lpaf_jax.runs.settings import Settings
from lpaf_jax.runs.text_models import COLUMN, JUDGED, Result, TextModel, source_of

_BATCH = 16


class Encoder(TextModel):
    """An encoder with its head, as it is, cut in memory by what the whole model makes of the text.

    It is judged by the mean cosine between its last hidden states and those of the dense model,
    over all tokens: there are no labels to judge its answers by.
    """

    metric = "similarity"

    def __init__(self, folder: Path):
        values = read_json(folder / "config.json")
        self.family = family_name(values, str(folder))
        head = named_head(values, FAMILIES[self.family])
        if head is None:
            raise LpafError(
                f"{folder} is an encoder without a task head: give a fine-tuned model, or --task"
            )
        self._folder, self._model = folder, load_model(folder, head=head)
        self.dense_bytes = bytes_of_weights(folder)
        outputs = getattr(self._model, "num_labels", None)
        self.kind = "regression" if head == "classification" and outputs == 1 else head
        self.positions = self._model.positions
        params = parameters(self._model)
        self.shapes = {path: x.shape for path, x in params.items()}
        self._weights = compressible(params)
        self.matrices = {
            path.removesuffix(".kernel"): (w.shape[0], w.shape[1])
            for path, w in self._weights.items()
        }
        if records_of(self._model):
            raise LpafError(f"{folder} is already factorized; start from a dense model")

    def check(self, settings: Settings) -> None:
        chosen = settings.factorize
        chosen.refuse_blocks("without a task, an encoder is not tuned")
        if settings.nf4:
            raise SettingError(("nf4",), "without a task, works only for decoders: give --task")
        if chosen.embeddings is not None:
            raise SettingError(
                ("embeddings",), "works only for decoders without a task: give --task"
            )
        chosen.planned(self.matrices, trained=False)
        if len(settings.steps_of_texts) > 1:
            raise SettingError(
                ("tune_epochs",), "works only for decoders without a task: give --task"
            )
        for name, needs in (
            ("importance", "loss" in IMPORTANCES[chosen.importance].needs),
            ("ranks", RANK_RULES[chosen.ranks].needs_spectra),
        ):
            if needs:
                raise SettingError(
                    (name,),
                    f"{getattr(chosen, name)!r} needs gradients, which an encoder has only with a "
                    "task: use --recipe drone, or --task with --finetune-epochs 0 --tune-epochs 0",
                )

    def read(self, settings: Settings, tokenizer: Tokenizer, length: int) -> tuple[Any, Any]:
        assert settings.calibration is not None
        if settings.held_out is not None:
            given = _lines(settings, settings.calibration, "train")
            judged = _lines(settings, settings.held_out, "test")
        else:
            given = _lines(settings, settings.calibration, "train", JUDGED)
            kept = len(given) - held_out(len(given), JUDGED)
            given, judged = spread(given[:kept], settings.samples), given[kept:]

        def encoded(texts: list[str]) -> Encoded | None:
            return encode(tokenizer, unlabelled(texts), length) if texts else None

        return encoded(given), encoded(judged)

    def size(self, text: Encoded) -> tuple[int, int]:
        return len(text), sum(map(len, text.ids))

    def bytes(self, text: Encoded) -> bytes:
        return b"|".join(ids.tobytes() for ids in text.ids)

    def cut(
        self,
        settings: Settings,
        calibration: Encoded,
        judged: Encoded,
        work: Path,
        progress: Progress,
    ) -> Result:
        model = self._model
        told = partial(progress.part, "factorize")
        progress.busy("answers of the dense model")
        before = _hidden(model, judged)

        def batches(count: int | None = None) -> Iterable[dict[str, np.ndarray]]:
            return counted(_batches(calibration)[:count], told)

        moments = activation_moments(model, batches())
        subject = Subject(model, self._weights, {}, {}, {}, batches, None)
        found = factorize(subject, **settings.factorize.choices(trained=False), told=told)
        to_factors(model, found)
        cuts = []
        for path, w in self._weights.items():
            place, solution = path.removesuffix(".kernel"), found.get(path)
            m, n = w.shape
            if solution is None:
                cuts.append(Cut(place, (m, n), None, 0.0))
                continue
            lost = float(output_error(w, solution.factors.dense(), moments[place].second))
            cuts.append(Cut(place, (m, n), record_of(layer_at(model, place)), lost))
        lost_of_all = np.mean([c.error for c in cuts])
        progress.say(f"{len(cuts)} matrices: {lost_of_all:.1%} of the output energy lost")
        return Result(cuts, {"dense": 1.0, "compressed": _similarity(before, model, judged)})

    def assemble(self, result: Result, work: Path, folder: Path) -> None:
        save_model(self._model, folder, source=self._folder, label_names=None, card="")


def _lines(
    settings: Settings, text: Path, part: Literal["train", "test"], more: int = 0
) -> list[str]:
    """As many texts as are asked for, and `more`."""
    count = settings.samples + more
    source = source_of(text, part)
    if isinstance(source, Path):
        return text_lines(source, settings.text_column or COLUMN, count).texts
    return spread(source, count)


def _batches(text: Encoded) -> Batches:
    return eval_batches(text, min(_BATCH, len(text)))


def _hidden(model: Any, text: Encoded) -> list[np.ndarray]:
    """The last hidden states of the tokens of each batch, (tokens, hidden)."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def last(state: Any, inputs: Any) -> jax.Array:
        found: jax.Array = nnx.merge(graphdef, state).with_hidden(**inputs)[1][-1]
        return found

    found = []
    for batch in _batches(text):
        real = (batch["attention_mask"] != 0) & (batch["weight"][:, None] > 0)
        found.append(np.asarray(last(state, inputs_of(batch)), np.float32)[real])
    return found


def _similarity(dense: list[np.ndarray], model: Any, text: Encoded) -> float:
    """The mean cosine of two models' states, over all tokens."""
    total, count = 0.0, 0
    for one, other in zip(dense, _hidden(model, text), strict=True):
        norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        total += float(np.sum(np.sum(one * other, axis=1) / np.maximum(norms, 1e-30)))
        count += len(one)
    return total / count

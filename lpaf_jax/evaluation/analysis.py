"""Spectra of a model's matrices and of what goes into them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lpaf_jax.checkpoints import DecoderOnDisk, resolve_model
from lpaf_jax.checkpoints.headless import load_headless
from lpaf_jax.checkpoints.weight_files import weight_files
from lpaf_jax.core.errors import LpafError, SettingError
from lpaf_jax.core.files import read_json
from lpaf_jax.core.folders import model_folder
from lpaf_jax.data import Encoded, Examples, encode, eval_batches, load_task, load_tokenizer
from lpaf_jax.data.tables import FILES, SUFFIXES, TEXT_COLUMN, text_lines
from lpaf_jax.evaluation.hidden import compare_hidden
from lpaf_jax.evaluation.tenths import dense_judge, without_tenths
from lpaf_jax.factorization.spectra import feature_spectra, output_spectra, weight_spectra
from lpaf_jax.factors import read_records
from lpaf_jax.importance import activation_moments
from lpaf_jax.models import parameters
from lpaf_jax.models.families import FAMILIES, default_head, family_name, named_head

_BATCH = 16


def analyse_model(
    name: str,
    *,
    task: str | None = None,
    text: Path | None = None,
    text_column: str | None = None,
    label_column: str | None = None,
    pair_column: str | None = None,
    data: Path | None = None,
    texts: int = 256,
    length: int = 128,
    against: str | None = None,
    tenths: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Spectra of the weights of a model and, given texts, of its features.

    Args:
        name: of a model, the folder of one, or of a run, whose final model it then is.
        task: whose training texts are read.
        text: a file whose lines are; of a .json, .csv, .tsv, .jsonl or .parquet file, whose rows.
        text_column: of a file, be it a task or a text; `sentence` unless given.
        label_column: of the task; see `lpaf_jax.data.load_task`.
        pair_column: of the task, too.
        data: a local copy of the task.
        texts: how many at most, drawn by hash from a task, evenly spread over a file.
        length: longest text in tokens; what is longer is cut.
        against: a second model, the dense one of the first, say: hidden states are compared, which
            takes texts.
        tenths: a file to judge the model by without each tenth of its spectra, as `lpaf evaluate`
            would; see `lpaf_jax.evaluation.tenths.without_tenths`.
        say: is told what is being done.

    Returns:
        JSON values: `weights` and, None without texts, `features` and `outputs`; see
        `lpaf_jax.factorization.spectra`. `against` and `tenths`, None where not asked for.

    Raises:
        LpafError: the model, the task or the file cannot be read, or a setting is out of range.
    """
    if texts < 1:
        raise SettingError(("texts",), f"is {texts}, but must be at least 1")
    if task is not None and text is not None:
        raise SettingError(("task", "text"), "exclude each other: give only one")
    if against is not None and task is None and text is None:
        raise SettingError(("against",), "compares hidden states of texts: give --task or --text")
    place = _place(name)
    other = None if against is None else _other(place, against)
    columns = {
        "text_column": text_column,
        "label_column": label_column,
        "pair_column": pair_column,
    }
    judge = None if tenths is None else dense_judge(place, tenths, **columns)
    of_task = {"label_column": label_column, "pair_column": pair_column, "data": data}
    if task is not None:
        chosen: Any = of_task | {"text_column": text_column}
        loaded = load_task(task, limit=texts, **chosen)
        examples: Examples | None = loaded.train
        if loaded.left_out:
            say(loaded.left_out)
    else:
        if tenths is None:
            _refuse("without --task", **of_task)
        else:
            _refuse("without --task", data=data)
        examples = _rows(text, None if text is None else text_column, texts)
        if text is None and tenths is None:
            _refuse(f"without a {FILES}", text_column=text_column)
    tokenizer = None if examples is None else load_tokenizer(place)
    values = read_json(place / "config.json")
    found: dict[str, Any] = {
        "model": name,
        "family": family_name(values, str(place)),
        "source": task if text is None else str(text),
        "texts": None if examples is None else len(examples),
    }
    model = None
    if examples is None and _by_blocks(values, place):
        found["weights"] = _from_disk(DecoderOnDisk(place), say)
    else:
        say(f"loading {place}")
        model = load_headless(place)
        say("spectra of the weights")
        found["weights"] = weight_spectra(parameters(model))
    found["features"] = found["outputs"] = found["tokens"] = found["against"] = None
    if examples is not None and tokenizer is not None:
        assert model is not None
        encoded = encode(tokenizer, examples, min(length, model.positions))
        say(f"spectra of the features, on {len(examples)} texts")
        moments = activation_moments(model, _batches(encoded))
        found["features"] = feature_spectra(moments)
        found["outputs"] = output_spectra(model, moments)
        found["tokens"] = found["features"][0]["shape"][0]
        if other is not None:
            say(f"hidden states compared with those of {against}")
            layers = compare_hidden(other, model, _batches(encoded))
            found["against"] = {"model": against, "layers": layers}
    found["tenths"] = None
    if judge is not None:
        found["tenths"] = without_tenths(judge, say=say) | {"data": str(tenths)}
    return found


def _by_blocks(values: dict[str, Any], place: Path) -> bool:
    """Whether a folder is one that can be read block by block: a dense decoder with its head."""
    family = FAMILIES[family_name(values, str(place))]
    head = named_head(values, family) or default_head(values, family)
    pickled = any(file.suffix == ".bin" for file in weight_files(place))
    dense = not read_records(values, place)
    return family.block is not None and head == "lm" and dense and not pickled


def _from_disk(source: DecoderOnDisk, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """The spectra of the weights of a model that may be larger than memory: a block at a time."""
    found: list[dict[str, Any]] = []
    for index in range(source.blocks):
        say(f"spectra of the weights, block {index + 1} of {source.blocks}")
        params, prefix = parameters(source.block(index)), source.prefix(index)
        found += weight_spectra({f"{prefix}.{path}": x for path, x in params.items()})
    return found


def _place(name: str) -> Path:
    folder = Path(name).expanduser()
    is_run = folder.is_dir() and not (folder / "config.json").is_file()
    if is_run and (folder / "model" / "config.json").is_file():
        return model_folder(folder)
    return resolve_model(name)


def _other(place: Path, against: str) -> Any:
    """The model to compare with, of the same tokens."""
    there = _place(against)
    sizes = [read_json(folder / "config.json").get("vocab_size") for folder in (place, there)]
    if sizes[0] != sizes[1]:
        raise LpafError(
            f"{against} has a vocabulary of {sizes[1]} tokens, not {sizes[0]}: it reads other "
            "token ids"
        )
    return load_headless(there)


def _refuse(why: str, **options: object) -> None:
    for option, value in options.items():
        if value is not None:
            raise SettingError((option,), f"has no effect {why}: leave it out")


def _rows(text: Path | None, column: str | None, count: int) -> Examples | None:
    if text is None or text.suffix.lower() not in SUFFIXES:
        _refuse(f"without a {FILES}", text_column=column)
    if text is None:
        return None
    return text_lines(text, column or TEXT_COLUMN, count)


def _batches(encoded: Encoded) -> Any:
    return eval_batches(encoded, min(_BATCH, len(encoded)))

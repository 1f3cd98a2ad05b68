"""Factorized folders load in PyTorch, in a process that has torch and transformers alone."""

import ast
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lpaf_jax.checkpoints import load_model, save_model
from lpaf_jax.checkpoints.remote_code import MODELING_FILE, modeling_code, remote_fields
from lpaf_jax.data import load_tokenizer
from lpaf_jax.export import export_factorized
from lpaf_jax.factorization import to_factors
from lpaf_jax.linalg import LowRank
from lpaf_jax.models import compressible, parameters
from lpaf_jax.models.families import FAMILIES
from lpaf_jax.solvers import Solution

torch = pytest.importorskip("torch")

READER = Path(__file__).with_name("torch_reader.py")
TEXT = "A moving, unforgettable film."
PAIR = ("Is it good?", TEXT)
BERT = {"type_vocab_size": 2, "intermediate_size": 48, "num_hidden_layers": 2}
DECODER = {"num_hidden_layers": 2, "num_key_value_heads": 2, "intermediate_size": 48}


class Model(NamedTuple):
    """A class of transformers, and what its tiny configuration says beside the sizes of all."""

    family: str
    architecture: str
    config: dict[str, Any]

    @property
    def decoder(self) -> bool:
        return self.architecture.endswith(("ForCausalLM", "LMHeadModel"))


MODELS = [
    # The vocabulary is that of the tokenizer that lies beside.
    Model("bert", "BertForSequenceClassification", BERT | {"vocab_size": 30522}),
    Model("bert", "BertForQuestionAnswering", BERT),
    Model("roberta", "RobertaForSequenceClassification", BERT | {"pad_token_id": 1}),
    Model("distilbert", "DistilBertForSequenceClassification", {"n_layers": 2, "hidden_dim": 48}),
    Model("distilbert", "DistilBertForQuestionAnswering", {"n_layers": 2, "hidden_dim": 48}),
    Model("gpt2", "GPT2LMHeadModel", {"n_layer": 2}),
    Model("gpt2", "GPT2ForSequenceClassification", {"n_layer": 2}),
    Model("gpt2", "GPT2ForQuestionAnswering", {"n_layer": 2}),
    Model("llama", "LlamaForCausalLM", DECODER),
    Model("llama", "LlamaForSequenceClassification", DECODER),
    Model("llama", "LlamaForQuestionAnswering", DECODER),
    Model("mistral", "MistralForCausalLM", DECODER),
    Model("mistral", "MistralForQuestionAnswering", DECODER),
    Model("qwen2", "Qwen2ForCausalLM", DECODER | {"tie_word_embeddings": True}),
    Model("qwen3", "Qwen3ForCausalLM", DECODER | {"head_dim": 8}),
]
# The models that this package has: it writes their folders and says what comes out. The others are
# written by hand, so that the code in the folder is known to serve them, too.
OURS = [
    model for model in MODELS if model.architecture in FAMILIES[model.family].architectures.values()
]
BY_HAND = [model for model in MODELS if model not in OURS]
WITH_TOKENIZER = "BertForSequenceClassification"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
# Tokenizers that name no class, as folders of BERT have them, and what else such a folder says.
NAMELESS = {"vocabulary": ("vocab.txt",), "unnamed": ("tokenizer.json",)}
UNNAMED = {"do_lower_case": True, "model_max_length": 512}


@dataclass
class Read:
    """A factorized folder, what it should say, and what a stranger read from it."""

    model: Model
    folder: Path
    expected: np.ndarray
    arrays: Any = None
    facts: Any = None

    @property
    def stored(self) -> dict[str, np.ndarray]:
        return load_file(self.folder / "model.safetensors")


def torch_class(name: str) -> Any:
    import transformers

    return getattr(transformers, name)


def torch_model(model: Model) -> Any:
    theirs = torch_class(model.architecture)
    common = {"vocab_size": 61, "max_position_embeddings": 20, "pad_token_id": 0}
    common["num_labels"] = 2 if model.architecture.endswith("ForQuestionAnswering") else 3
    heads = {"hidden_size": 32, "num_attention_heads": 4}
    config = theirs.config_class(**{**common, **heads, **model.config})
    torch.manual_seed(0)
    made = theirs(config).eval()
    with torch.no_grad():  # far from the even attention of freshly drawn weights
        for name, parameter in made.named_parameters():
            parameter.add_((0.05 if "orm" in name else 0.2) * torch.randn_like(parameter))
    return made


def inputs(model: Model) -> dict[str, np.ndarray]:
    """Rows of 9, 5 and 2 tokens, padded at the end, those of a decoder at the front."""
    rng = np.random.default_rng(1)
    ids = rng.integers(2, 61, (3, 9))
    mask = np.arange(9) < np.array([9, 5, 2])[:, None]
    mask = mask[:, ::-1] if model.decoder else mask
    pad = model.config.get("pad_token_id", 0)
    given = {"input_ids": np.where(mask, ids, pad), "attention_mask": mask.astype(int)}
    if model.family == "bert":
        given["token_type_ids"] = np.where(mask, np.arange(9) > 2, 0)
    return given


def seen(given: dict[str, np.ndarray], array: np.ndarray) -> np.ndarray:
    """What belongs to tokens, and not to padding; all of it where there is one row a text."""
    return array[given["attention_mask"] > 0] if array.ndim == 3 else array


def torch_logits(theirs: Any, given: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        output = theirs(**{name: torch.tensor(array) for name, array in given.items()})
    if "logits" in output:
        return output.logits.numpy()
    return torch.stack([output.start_logits, output.end_logits], -1).numpy()


def factors(kernel: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    u, s, vt = np.linalg.svd(kernel, full_matrices=False)
    return u[:, :rank] * s[:rank], vt[:rank]


def written_by_hand(model: Model, folder: Path) -> np.ndarray:
    """A folder in the layout of `save_model`, with factors of full rank and without our models."""
    from transformers.pytorch_utils import Conv1D

    theirs = torch_model(model)
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    if theirs.config.tie_word_embeddings and theirs.get_output_embeddings() is not None:
        del tensors["lm_head.weight"]
    records = {}
    for path, layer in theirs.named_modules():
        if isinstance(layer, torch.nn.Linear | Conv1D) and path != "lm_head":
            weight = tensors.pop(f"{path}.weight")
            kernel = weight if isinstance(layer, Conv1D) else weight.T
            records[path] = {"kind": "low_rank", "rank": min(kernel.shape)}
            down, up = factors(kernel, records[path]["rank"])
            tensors |= {f"{path}.down.weight": down.T, f"{path}.up.weight": up.T}
            if layer.bias is not None:
                tensors[f"{path}.up.bias"] = tensors.pop(f"{path}.bias")
    theirs.config.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    values |= remote_fields(model.family, model.architecture) | {"lpaf_factors": records}
    (folder / "config.json").write_text(json.dumps(values))
    code = modeling_code(model.family, model.architecture, ["low_rank"])
    (folder / MODELING_FILE).write_text(code)
    tensors = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return torch_logits(theirs, inputs(model))


def written_by_us(
    model: Model, folder: Path, tokenizer: Path, files: tuple[str, ...] = TOKENIZER
) -> np.ndarray:
    """A folder of truncated factors, from a dense one by transformers."""
    source = folder.with_name(f"{folder.name}_dense")
    torch_model(model).save_pretrained(source)
    if model.architecture == WITH_TOKENIZER:
        for name in files:
            shutil.copyfile(tokenizer / name, source / name)
    if folder.name == "unnamed":
        (source / "tokenizer_config.json").write_text(json.dumps(UNNAMED))
    ours = load_model(source)
    low = {
        path: Solution(LowRank(*map(jnp.asarray, factors(np.asarray(kernel), 3 + number % 4))))
        for number, (path, kernel) in enumerate(compressible(parameters(ours)).items())
    }
    to_factors(ours, low)
    classes = list("abc") if model.architecture.endswith("ForSequenceClassification") else None
    save_model(ours, folder, source=source, label_names=classes, card="")
    if model.architecture == WITH_TOKENIZER:
        (folder / "text.txt").write_text(TEXT)
    given = {name: jnp.asarray(array, jnp.int32) for name, array in inputs(model).items()}
    quick = {"xla_backend_optimization_level": 0}
    return np.asarray(jax.jit(lambda given: ours(**given), compiler_options=quick)(given))


def written_without_a_class(model: Model, folder: Path, tokenizer: Path) -> Read:
    """A folder whose tokenizer names no class, and what this library says of a pair of texts."""
    files = NAMELESS[folder.name]
    written_by_us(model, folder, tokenizer, files)
    source = folder.with_name(f"{folder.name}_dense")
    ((ids, types),) = load_tokenizer(source).encode([PAIR[0]], [PAIR[1]], max_length=20)
    ours = load_model(folder)
    row = [jnp.asarray([each]) for each in (ids, [1] * len(ids), types)]
    expected = np.asarray(ours(*row))
    # Or token types that are forgotten would not be seen.
    assert np.abs(expected - np.asarray(ours(*row[:2]))).max() > 0.01
    (folder / "pair.json").write_text(json.dumps(PAIR))
    return Read(model, folder, expected)


def environment(cache: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return kept | {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(cache)}


@pytest.fixture(scope="module")
def all_read(tmp_path_factory: Any, minilm_folder: Path) -> dict[str, Read]:
    place = tmp_path_factory.mktemp("remote")
    folders = {}
    for model in BY_HAND:
        folder = place / model.architecture
        folders[f"hand-{model.architecture}"] = Read(model, folder, written_by_hand(model, folder))
    for model in OURS:
        folder = place / f"ours_{model.architecture}"
        written = written_by_us(model, folder, minilm_folder)
        folders[f"ours-{model.architecture}"] = Read(model, folder, written)
    for read in folders.values():
        np.savez(read.folder / "inputs.npz", **inputs(read.model))
    (bert,) = (model for model in OURS if model.architecture == WITH_TOKENIZER)
    for name in NAMELESS:
        folders[name] = written_without_a_class(bert, place / name, minilm_folder)
    narrow = place / "narrow"
    export_factorized(place / "unnamed", narrow, dtype="bfloat16")
    shutil.copyfile(place / "unnamed" / "pair.json", narrow / "pair.json")
    folders["narrow"] = Read(bert, narrow, folders["unnamed"].expected)
    subprocess.run(
        [sys.executable, "-I", READER, *(read.folder for read in folders.values())],
        check=True,
        cwd=place,
        env=environment(place / "cache"),
        stdin=subprocess.DEVNULL,
    )
    for read in folders.values():
        read.arrays = np.load(read.folder / "read.npz")
        read.facts = json.loads((read.folder / "read.json").read_text())
    return folders


NAMES = [f"hand-{model.architecture}" for model in BY_HAND]
NAMES += [f"ours-{model.architecture}" for model in OURS]


@pytest.fixture(params=NAMES)
def read(request: pytest.FixtureRequest, all_read: dict[str, Read]) -> Read:
    return all_read[request.param]


def test_logits(read: Read) -> None:
    given = inputs(read.model)
    assert np.abs(read.expected).max() > 0.1
    np.testing.assert_allclose(
        seen(given, read.arrays["logits"]), seen(given, read.expected), atol=1e-4
    )


def test_every_tensor_finds_its_place(read: Read) -> None:
    prefix = f"{torch_class(read.model.architecture).base_model_prefix}."
    heads = sorted(name for name in read.stored if not name.startswith(prefix))
    # Where the model with a head has no pooler, transformers draws one for the model without.
    pooled = any(name.startswith(f"{prefix}pooler") for name in read.stored)
    pooled = pooled or FAMILIES[read.model.family].prefix not in ("bert", "roberta")
    pooler = [] if pooled else ["pooler.dense.bias", "pooler.dense.weight"]
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    nothing: dict[str, list[str]] = {kind: [] for kind in kinds}
    for kind, info in read.facts["info"].items():
        found = {"missing_keys": pooler, "unexpected_keys": heads} if kind == "body" else {}
        assert info == nothing | found, kind


def test_factors_stay_factors(read: Read) -> None:
    records = json.loads((read.folder / "config.json").read_text())["lpaf_factors"]
    assert len(records) >= 8
    assert read.facts["ranks"] == {path: record["rank"] for path, record in records.items()}
    assert read.facts["parameters"] == sum(array.size for array in read.stored.values())


def test_the_model_without_its_head(read: Read) -> None:
    given = inputs(read.model)
    np.testing.assert_allclose(
        seen(given, read.arrays["body"]), seen(given, read.arrays["hidden"]), atol=1e-5
    )


def test_bfloat16(read: Read) -> None:
    given = inputs(read.model)
    assert read.facts["dtypes"] == ["torch.bfloat16"]
    wide, narrow = (seen(given, read.arrays[name]) for name in ("logits", "narrow"))
    assert 0 < np.abs(wide - narrow).max() < 0.1 * np.abs(wide).max()


@pytest.mark.parametrize("kind", ["head", "body"])
def test_saved_again(read: Read, kind: str) -> None:
    assert {"config.json", "model.safetensors", MODELING_FILE} <= set(read.facts[f"saved_{kind}"])
    again = read.folder / f"again_{kind}"
    assert (again / MODELING_FILE).read_text() == (read.folder / MODELING_FILE).read_text()
    first = read.arrays["logits" if kind == "head" else "body"]
    np.testing.assert_array_equal(read.arrays[f"again_{kind}"], first)


def test_generation_with_and_without_a_cache(read: Read) -> None:
    if not read.model.decoder:
        assert "generated_True" not in read.arrays
        return
    generated = read.arrays["generated_True"]
    assert generated.shape == (1, 9)
    np.testing.assert_array_equal(generated, read.arrays["generated_False"])


def test_tied_embeddings_stay_tied(read: Read) -> None:
    assert read.facts["tied"] == (read.model.decoder and read.model.family in ("gpt2", "qwen2"))


def test_nothing_loads_that_is_not_trusted(read: Read) -> None:
    refusals = read.facts["refusals"]
    assert len(refusals) == 3
    for auto, message in refusals.items():
        assert "contains custom code which must be executed" in message, auto
        assert "trust_remote_code=True" in message


def test_a_new_model_of_that_shape(read: Read) -> None:
    """`from_config` draws weights, the factors' among them."""
    assert read.facts["drawn"]
    stem = remote_fields(read.model.family, read.model.architecture)["auto_map"]["AutoConfig"]
    name = stem.rpartition(".")[2]
    assert read.facts["config"] == [name, name, f"lpaf_{read.model.family}"]


def test_the_tokenizer_and_the_names_of_classes_come_along(all_read: dict[str, Read]) -> None:
    read = all_read[f"ours-{WITH_TOKENIZER}"]
    ((ids, types),) = load_tokenizer(read.folder).encode([TEXT], max_length=32)
    assert read.facts["ids"] == ids
    row = [jnp.asarray([each]) for each in (ids, [1] * len(ids), types)]
    shares = jax.nn.softmax(load_model(read.folder)(*row))[0]
    assert read.facts["answer"] == {
        "label": "abc"[int(shares.argmax())],
        "score": pytest.approx(float(shares.max()), abs=1e-5),
    }


@pytest.mark.parametrize("name", NAMELESS)
def test_a_tokenizer_whose_source_names_no_class(all_read: dict[str, Read], name: str) -> None:
    read = all_read[name]
    np.testing.assert_allclose(read.arrays["logits"], read.expected, atol=1e-4)
    rows = [
        load_tokenizer(place).encode([PAIR[0]], [PAIR[1]], max_length=20)
        for place in (read.folder, read.folder.with_name(f"{name}_dense"))
    ]
    assert rows[0] == rows[1]
    settings = json.loads((read.folder / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "BertTokenizer"
    assert name == "vocabulary" or settings == UNNAMED | {"tokenizer_class": "BertTokenizer"}


def test_a_tokenizer_keeps_the_class_that_it_has(all_read: dict[str, Read]) -> None:
    read = all_read[f"ours-{WITH_TOKENIZER}"]
    source = read.folder.with_name(f"{read.folder.name}_dense")
    kept = [(place / "tokenizer_config.json").read_bytes() for place in (source, read.folder)]
    assert kept[0] == kept[1]


def test_an_export_in_bfloat16(all_read: dict[str, Read]) -> None:
    read = all_read["narrow"]
    assert read.facts["dtypes"] == ["torch.bfloat16"]
    difference = np.abs(read.arrays["logits"] - read.expected).max()
    assert 0 < difference < 0.1 * np.abs(read.expected).max()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.architecture)
def test_the_code_is_small_and_needs_no_more_than_torch_and_transformers(model: Model) -> None:
    text = modeling_code(model.family, model.architecture, ["low_rank"])
    assert len(text.splitlines()) < 120
    assert max(map(len, text.splitlines())) <= 100
    assert ("bert" in text.lower()) == ("bert" in model.family)
    tree = ast.parse(text)
    imported = (node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom))
    roots = {module.split(".")[0] for module in imported}
    assert roots == {"collections", "torch", "transformers", "typing"}
    assert not any(isinstance(node, ast.Import) for node in ast.walk(tree))


def test_a_head_that_has_no_auto_class() -> None:
    with pytest.raises(ValueError, match="the head of BertForMaskedLM is not supported"):
        remote_fields("bert", "BertForMaskedLM")

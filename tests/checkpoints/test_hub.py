"""Names of models: the packaged one, folders, hub ids. No test here reaches the network."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from huggingface_hub.utils import filter_repo_objects

from lpaf_jax.checkpoints import hub, resolve_model
from lpaf_jax.core.errors import LpafError


@pytest.fixture(autouse=True)
def calls(monkeypatch):
    """Hub ids that were asked for; the hub answers that it cannot be reached."""
    asked = []

    def unreachable(name, **options):
        asked.append((name, options))
        raise ConnectionError("cannot resolve host\nand a long story after it")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    return asked


def test_minilm_is_the_packaged_folder(calls):
    folder = resolve_model("minilm")
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (folder / name).is_file()
    assert calls == []


def test_minilm_that_is_not_installed(monkeypatch, calls):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(LpafError, match="'minilm' is not installed: run 'make run' or 'pip"):
        resolve_model("minilm")
    assert calls == []


def test_a_folder_is_taken_as_it_stands(folder, calls, monkeypatch):
    assert resolve_model(str(folder)) == folder
    monkeypatch.chdir(folder.parent)
    # Looks like a hub id; what is on disk goes first.
    (folder.parent / "owner").mkdir()
    folder.rename(folder.parent / "owner" / "name")
    assert resolve_model("owner/name") == Path("owner/name")
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve_model("~/owner/name") == folder.parent / "owner" / "name"
    assert calls == []


def test_a_folder_without_config(tmp_path, calls):
    with pytest.raises(LpafError, match=r"is not a model folder: it has no config\.json"):
        resolve_model(str(tmp_path))
    assert calls == []


@pytest.mark.parametrize("name", ["/no/folder", "./none", "../none", "~/none/such", "runs/a/model"])
def test_a_folder_that_does_not_exist(name, calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(LpafError, match=f"model folder {name} does not exist"):
        resolve_model(name)
    assert calls == []


def test_an_unknown_name(calls):
    with pytest.raises(LpafError, match="unknown model 'minilmm': give 'minilm', 'smollm2', a"):
        resolve_model("minilmm")
    assert calls == []


def test_a_hub_that_cannot_be_reached(calls):
    with pytest.raises(LpafError) as caught:
        resolve_model("owner/name")
    message = str(caught.value)
    assert "'owner/name' is not a local folder and could not be fetched from the hub" in message
    assert message.endswith("cannot resolve host")
    assert [name for name, _ in calls] == ["owner/name"]


def test_a_hub_error_without_words(monkeypatch):
    def silent(name, **options):
        raise TimeoutError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", silent)
    with pytest.raises(LpafError, match="from the hub: TimeoutError"):
        resolve_model("owner/name")


@pytest.fixture
def repository(monkeypatch, tmp_path):
    """`repository(files, cached=None) -> folder` behind `snapshot_download`, as the hub has it.

    With `cached` the hub is out of reach: these are there, and what lacks of `files` is known.
    """

    def serve(files, cached=None):
        folder = tmp_path / "snapshot"
        folder.mkdir()
        for file in cached or ():
            (folder / file).touch()

        def download(name, allow_patterns):
            asked = set(filter_repo_objects(files, allow_patterns=allow_patterns))
            if cached is not None and not asked <= set(cached):
                raise LocalEntryNotFoundError("the snapshot is incomplete")
            for file in asked:
                (folder / file).touch()
            return str(folder)

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return folder

    return serve


SAFETENSORS = [
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "model.safetensors.index.json",
]
PICKLED = [
    "pytorch_model-00001-of-00002.bin",
    "pytorch_model-00002-of-00002.bin",
    "pytorch_model.bin.index.json",
]
BESIDE = [
    "added_tokens.json",
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
]
OTHERS = [
    "README.md",
    "consolidated.safetensors",
    "flax_model.msgpack",
    "model.onnx",
    "tf_model.h5",
    "training_args.bin",
]


@pytest.mark.parametrize(
    ("held", "fetched"),
    [
        (["model.safetensors"], ["model.safetensors"]),
        (SAFETENSORS, SAFETENSORS),
        ([*SAFETENSORS, *PICKLED, "pytorch_model.bin"], SAFETENSORS),
        (["pytorch_model.bin"], ["pytorch_model.bin"]),
        (PICKLED, PICKLED),
    ],
    ids=["safetensors", "shards", "both", "pickled", "pickled shards"],
)
def test_a_hub_id_fetches_what_is_read_and_no_other_weights(repository, held, fetched):
    folder = repository([*held, *BESIDE, *OTHERS])
    assert resolve_model("owner/name") == folder
    assert sorted(file.name for file in folder.iterdir()) == sorted([*fetched, *BESIDE])


@pytest.mark.parametrize("weights", [SAFETENSORS, PICKLED], ids=["safetensors", "pickled"])
def test_what_was_fetched_before_is_found_without_the_hub(repository, weights):
    """Also where files lack that a model does without, as earlier versions did not fetch them."""
    files = [*SAFETENSORS, *PICKLED, *BESIDE] if weights == SAFETENSORS else [*PICKLED, *BESIDE]
    folder = repository(files, cached=["config.json", "tokenizer.json", *weights])
    assert resolve_model("owner/name") == folder


@pytest.mark.parametrize("lacking", [SAFETENSORS[1], "config.json"])
def test_half_a_model_without_the_hub(repository, lacking):
    files = [*SAFETENSORS, *BESIDE]
    repository(files, cached=[file for file in files if file != lacking])
    with pytest.raises(LpafError, match="could not be fetched from the hub: the snapshot is incom"):
        resolve_model("owner/name")

"""Names of models: the packaged one, folders, hub ids. No test here reaches the network."""

from pathlib import Path

import huggingface_hub
import pytest

from lpaf_jax.errors import LpafError
from lpaf_jax.models import hub, packaged_minilm, resolve_model


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
    assert folder == packaged_minilm()
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
    with pytest.raises(LpafError, match=r"is not a model folder: it holds no config\.json"):
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
    with pytest.raises(LpafError, match="unknown model 'minilmm': give 'minilm', a folder"):
        resolve_model("minilmm")
    assert calls == []


def test_a_hub_that_cannot_be_reached(calls):
    with pytest.raises(LpafError) as caught:
        resolve_model("owner/name")
    message = str(caught.value)
    assert "'owner/name' is no local folder and could not be had from the hub" in message
    assert message.endswith("cannot resolve host")
    assert [name for name, _ in calls] == ["owner/name"]


def test_a_hub_error_without_words(monkeypatch):
    def silent(name, **options):
        raise TimeoutError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", silent)
    with pytest.raises(LpafError, match="from the hub: TimeoutError"):
        resolve_model("owner/name")


def test_a_hub_id_fetches_what_is_read_and_no_other_weights(monkeypatch, folder):
    wanted = []

    def download(name, allow_patterns):
        wanted.extend(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("owner/name") == folder
    files = [Path(f"{stem}.{end}") for stem, end in (("config", "json"), ("tokenizer", "json"))]
    files += [Path("model.safetensors"), Path("model-00001-of-00002.safetensors")]
    files += [Path("model.safetensors.index.json"), Path("vocab.txt")]
    for file in files:
        assert any(file.match(pattern) for pattern in wanted), file
    for file in map(Path, ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "model.onnx")):
        assert not any(file.match(pattern) for pattern in wanted), file

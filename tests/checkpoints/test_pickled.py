"""Weights that PyTorch pickled: `pytorch_model.bin`, today's and those of old versions."""

import weakref

import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model
from lpaf_jax.checkpoints import tensors as files
from lpaf_jax.checkpoints.torch_twin import torch_twin
from lpaf_jax.core.errors import LpafError
from lpaf_jax.evaluation.inspection import inspect_model
from lpaf_jax.models import parameters

torch = pytest.importorskip("torch")

KINDS = ["float64", "float32", "float16", "bfloat16"]
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def pickled(write_folder, tensors):
    """`pickled(kind, old=False, **tensors in place of others) -> folder`."""

    def write(kind="float32", old=False, **changes):
        folder = write_folder({})
        state = {n: torch.tensor(x).to(getattr(torch, kind)) for n, x in tensors.items()}
        state |= {"bert.embeddings.position_ids": torch.arange(20)[None], **changes}
        file = folder / "pytorch_model.bin"
        torch.save(state, file, _use_new_zipfile_serialization=not old)
        return folder

    return write


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("kind", KINDS)
def test_they_are_read_as_float32(pickled, tensors, kind, old):
    folder = pickled(kind, old)
    params = parameters(load_model(folder))
    for path in ("classifier.bias", "classifier.kernel", QUERY.replace("weight", "kernel")):
        name = path.replace("kernel", "weight")
        expected = torch.tensor(tensors[name]).to(getattr(torch, kind)).float().numpy()
        assert params[path].dtype == np.float32
        np.testing.assert_array_equal(params[path], expected.T)
    state = torch_twin(folder).state_dict()
    np.testing.assert_array_equal(state[QUERY], params[QUERY.replace("weight", "kernel")].T)
    names = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    assert inspect_model(folder)["dtypes"] == [names[kind]]


def test_a_tensor_is_let_go_when_it_has_its_place(pickled, tensors, monkeypatch):
    folder, refs, alive = pickled("bfloat16"), [], []
    load, widen = torch.load, files._widened

    def watched_load(*args, **options):
        state = load(*args, **options)
        refs.extend(weakref.ref(tensor) for tensor in state.values())
        return state

    def watched_widen(*args):
        alive.append(sum(ref() is not None for ref in refs))
        return widen(*args)

    monkeypatch.setattr(torch, "load", watched_load)
    monkeypatch.setattr(files, "_widened", watched_widen)
    load_model(folder)
    assert alive == [len(tensors) + 1 - i for i in range(len(tensors))]


@pytest.mark.parametrize("kind", ["int8", "float8_e4m3fn"])
def test_codes_are_no_weights(pickled, kind):
    codes = torch.ones(32, 32).to(getattr(torch, kind))
    with pytest.raises(LpafError, match=f"{QUERY} is stored as {kind}, which is not supported"):
        load_model(pickled(**{QUERY: codes}))


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(1.0)}}, "lr": 0.1}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3, "optimizer_states": [OPTIMIZER]},
        lambda state: {"model": state, "optimizer": {**OPTIMIZER, "exp_avg": state}},
        lambda state: {"trainer": {"module": state}, "step": torch.tensor(5)},
        lambda state: {**state, "epoch": 3, "optimizer": OPTIMIZER},
        lambda state: {n: torch.nn.Parameter(x.float()) for n, x in state.items()},
    ],
)
def test_weights_are_found_among_what_training_leaves(pickled, wrap):
    folder = pickled()
    file = folder / "pytorch_model.bin"
    expected = parameters(load_model(folder))
    state = torch.load(file, weights_only=True)
    torch.save(wrap(state), file)
    for path, array in parameters(load_model(folder)).items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)
    np.testing.assert_array_equal(
        torch_twin(folder).state_dict()[QUERY], expected[QUERY.replace("weight", "kernel")].T
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"model": {"a.weight": torch.ones(2)}, "ema": {"a.weight": torch.ones(2)}}, "model, ema"),
        ({"a.weight": torch.ones(2), "ema": {"a.weight": torch.ones(2)}}, "at the top, ema"),
        ({"optimizer": OPTIMIZER, "epoch": 3}, r"no tensors .*\(optimizer, epoch\)"),
        ([torch.ones(2)], r"no tensors .*\(a list\)"),
        (torch.ones(2), r"no tensors .*\(a Tensor\)"),
        (torch.nn.Linear(2, 2), r"an object of torch\.nn\.modules\.linear\.Linear"),
    ],
)
def test_what_is_no_weights_is_named(pickled, content, told):
    file = pickled() / "pytorch_model.bin"
    torch.save(content, file)
    with pytest.raises(
        LpafError, match=rf"pytorch_model\.bin (holds|contains) .*{told}.*state_dict"
    ):
        load_model(file.parent)


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        (torch.eye(32).to_sparse(), "sparse_coo"),
        (torch.empty(32, 32, device="meta"), "meta, without values"),
    ],
)
def test_tensors_of_other_kinds_are_named(pickled, odd, told):
    with pytest.raises(LpafError, match=f"{QUERY} is stored as {told}, which is not supported"):
        load_model(pickled(**{QUERY: odd}))


@pytest.mark.parametrize("old", [False, True], ids=["zip", "before 1.6"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_truncated_files(pickled, share, old):
    file = pickled(old=old) / "pytorch_model.bin"
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(LpafError, match=r"pytorch_model\.bin is damaged or cannot be read"):
        load_model(file.parent)


def test_shards(pickled, write_folder):
    whole = pickled()
    folder = write_folder({})
    state = torch.load(whole / "pytorch_model.bin", weights_only=True)
    names, index = sorted(state), {}
    for part in range(2):
        file = f"pytorch_model-{part + 1:05d}-of-00002.bin"
        torch.save({name: state[name] for name in names[part::2]}, folder / file)
        index |= dict.fromkeys(names[part::2], file)
    files.write_json(folder / "pytorch_model.bin.index.json", {"weight_map": index})
    expected = parameters(load_model(whole))
    for path, array in parameters(load_model(folder)).items():
        np.testing.assert_array_equal(array, expected[path], err_msg=path)

"""Files of llama.cpp as models; the oracle is what PyTorch reads in the same file."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model, resolve_model
from lpaf_jax.checkpoints.gguf_tensors import gguf_places, gguf_rows, write_index
from lpaf_jax.checkpoints.tensors import read_headers, read_tensor
from lpaf_jax.checkpoints.walk import DecoderOnDisk
from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.files import read_json
from lpaf_jax.data import load_tokenizer
from lpaf_jax.models.families import FAMILIES
from tests.gguf_files import HEADS, WIDTH, tokens, write_gguf, write_tensors

TEXT = "In the thin morning, the  film <|user|>begins.<|end|>"


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        ("llama", "Q4_1"),
        ("llama", "F32"),
        ("llama", "Q4_0"),
        ("qwen2", "Q8_0"),
        ("qwen3", "F16"),
        ("gpt2", "BF16"),
        ("gpt2", "Q5_0"),
    ],
)
def test_logits_and_tokens_are_those_of_pytorch(tmp_path: Path, kind: str, stored: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = write_gguf(tmp_path / "model.gguf", kind, stored)
    place: dict[str, Any] = {"pretrained_model_name_or_path": str(tmp_path), "gguf_file": file.name}
    theirs = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()
    folder = resolve_model(str(file))
    ids = load_tokenizer(folder).tokens([TEXT], special=True)[0]
    assert ids == AutoTokenizer.from_pretrained(**place)(TEXT)["input_ids"]
    assert {0, 1, tokens().index("Ġth")} <= set(ids)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits.numpy()
    found = load_model(folder)(np.array([ids]))
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_walk_reads_it_block_by_block(tmp_path: Path) -> None:
    folder = resolve_model(str(write_gguf(tmp_path / "model.gguf", "llama", "Q4_1")))
    whole, source = load_model(folder), DecoderOnDisk(folder)
    for index in range(source.blocks):
        kernel = source.block(index).self_attn.q_proj.kernel[...]
        np.testing.assert_array_equal(
            kernel, whole.model.layers[index].self_attn.q_proj.kernel[...]
        )
    assert source.stored_dtype("model.layers.0.mlp.up_proj.kernel").name == "bfloat16"
    assert source.stored_dtype("model.norm.weight") == np.float32
    assert source.unread_bytes == 0
    assert read_json(folder / "config.json")["dtype"] == "bfloat16"


@pytest.mark.parametrize("stored", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "MXFP4"])
def test_codes_are_unpacked_as_the_package_does(tmp_path: Path, stored: str) -> None:
    kind = gguf.GGMLQuantizationType[stored]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    codes = np.random.default_rng(0).integers(0, 60, (512, 256 // block * size), dtype=np.uint8)
    facts = {"llama.attention.head_count": HEADS}
    tensors = {"blk.0.ffn_up.weight": (codes, stored)}
    file = write_tensors(tmp_path / "x.gguf", "llama", tensors, facts)
    read = gguf.GGUFReader(file).tensors
    write_index(tmp_path, read, facts | {"general.architecture": "llama"})
    expected = gguf.dequantize(codes, kind)
    name = "model.layers.0.mlp.up_proj.weight"
    assert gguf_places(file)[name].shape == (512, 256)
    np.testing.assert_array_equal(gguf_rows(file, name, slice(None)), expected)
    np.testing.assert_array_equal(gguf_rows(file, name, slice(100, 140)), expected[100:140])


def test_pieces_of_a_matrix_in_another_order_are_those_of_the_whole(tmp_path: Path) -> None:
    for kind, name in (
        ("llama", "model.layers.1.self_attn.q_proj.weight"),
        ("gpt2", "transformer.h.1.attn.c_attn.weight"),
    ):
        folder = resolve_model(str(write_gguf(tmp_path / f"{kind}.gguf", kind, "Q8_0")))
        header = next(h for h in read_headers(folder) if h.name == name)
        whole = gguf_rows(header.file, name, slice(None))
        assert whole.shape == header.shape
        np.testing.assert_array_equal(gguf_rows(header.file, name, slice(5, 40)), whole[5:40])
        np.testing.assert_allclose(
            read_tensor(header.file, name).astype(np.float32), whole, rtol=2**-8
        )


def test_frequencies_of_llama_3_are_found_again(tmp_path: Path) -> None:
    llama3 = {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    shape = {"vocab_size": 9, "hidden_size": WIDTH, "intermediate_size": 8, "num_hidden_layers": 1}
    shape |= {"num_attention_heads": HEADS, "model_type": "llama"}
    family = FAMILIES["llama"]
    wanted: Any = family.config(shape | {"rope_parameters": llama3})
    plain: Any = family.config(shape | {"rope_parameters": {"rope_theta": 5000.0}})
    divisors = np.array(plain.rotary.frequencies) / np.array(wanted.rotary.frequencies)
    assert divisors.max() > 2 > divisors.min()
    name = "rope_freqs.weight"
    file = write_gguf(tmp_path / "x.gguf", more={name: (divisors.astype(np.float32), "F32")})
    found: Any = family.config(read_json(resolve_model(str(file)) / "config.json"))
    np.testing.assert_allclose(found.rotary.frequencies, wanted.rotary.frequencies, rtol=1e-4)
    odd = np.linspace(1, 3, len(divisors), dtype=np.float32)
    with pytest.raises(
        LpafError, match="the factors in rope_freqs.weight are not those of Llama 3"
    ):
        resolve_model(str(write_gguf(tmp_path / "odd.gguf", more={name: (odd, "F32")})))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"llama.expert_count": 8}, "mixture of experts"),
        ({"split.count": 3}, r"one of 3 parts: merge them with llama-gguf-split"),
        ({"general.type": "adapter"}, "is not a model: its type is adapter"),
        ({"llama.rope.dimension_count": 8, "llama.attention.key_length": 16}, "part of each head"),
        ({"llama.rope.scaling.type": "longrope"}, "the rotary scaling 'longrope'"),
        ({"llama.embedding_length": None}, "has no field llama.embedding_length"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, said: dict[str, Any], message: str) -> None:
    file = write_gguf(tmp_path / "model.gguf", said=said)
    with pytest.raises(LpafError, match=message) as refused:
        resolve_model(str(file))
    assert str(file) in str(refused.value)
    assert not list((tmp_path / "cache").rglob("config.json"))


def test_another_architecture_and_what_is_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(
        LpafError, match="architecture 'falcon' is not supported; supported are llama"
    ):
        resolve_model(str(write_gguf(tmp_path / "falcon.gguf", "falcon")))
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    with pytest.raises(LpafError, match="is not a GGUF file, despite its name"):
        resolve_model(str(tmp_path / "page.gguf"))
    (tmp_path / "lfs.gguf").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(LpafError, match="run git lfs pull"):
        resolve_model(str(tmp_path / "lfs.gguf"))
    with pytest.raises(LpafError, match=r"none\.gguf does not exist"):
        resolve_model("some/none.gguf")


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf")
    whole = file.read_bytes()
    for size in (len(whole) // 50, len(whole) - 100):
        file.write_bytes(whole[:size])
        with pytest.raises(LpafError, match="is damaged"):
            resolve_model(str(file))


def test_integers_are_no_weights(tmp_path: Path) -> None:
    more = {"blk.0.ffn_up.weight": (np.zeros((96, 64)), "I8")}
    file = write_gguf(tmp_path / "x.gguf", more=more)
    with pytest.raises(LpafError, match=r"ffn_up\.weight is stored as I8, which is not supported"):
        resolve_model(str(file))


def test_pytorch_is_not_needed(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "x.gguf", stored="Q8_0")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from lpaf_jax.checkpoints import load_model, resolve_model\n"
        "from lpaf_jax.data import load_tokenizer\n"
        f"folder = resolve_model({str(file)!r})\n"
        "load_model(folder), load_tokenizer(folder)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

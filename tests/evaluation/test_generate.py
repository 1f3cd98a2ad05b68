"""Texts that are continued with a cache: PyTorch's own tokens, and those of whole passes."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model
from lpaf_jax.cli import main
from lpaf_jax.core.errors import LpafError
from lpaf_jax.evaluation.generate import Generator, Sampling, _chosen, generate
from tests.decoders import GPT2, IDS, LLAMA, both
from tests.gguf_files import write_gguf
from tests.tiny_decoder import write_decoder

PROMPTS = IDS[:, :7]


def follow(model: Any, ids: np.ndarray, count: int, **sampling: Any) -> np.ndarray:
    return np.stack(list(Generator(model).tokens(ids, count, Sampling(**sampling))), axis=1)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("GPT2LMHeadModel", GPT2),
        ("LlamaForCausalLM", LLAMA),
        ("MistralForCausalLM", LLAMA | {"sliding_window": 4}),
        ("Qwen3ForCausalLM", LLAMA | {"head_dim": 8}),
    ],
)
def test_the_most_likely_tokens_are_those_of_pytorch(
    tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    torch = pytest.importorskip("torch")
    ours, theirs = both(tmp_path, name, **config)
    ids = torch.tensor(PROMPTS).long()
    found = theirs.generate(
        ids,
        max_new_tokens=12,
        do_sample=False,
        attention_mask=torch.ones_like(ids),
        eos_token_id=None,
    )
    np.testing.assert_array_equal(follow(ours, PROMPTS, 12), found[:, 7:])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_cache_changes_nothing(tmp_path: Path, family: str) -> None:
    model = load_model(write_decoder(tmp_path / family, family))
    ids = PROMPTS % 50
    found = follow(model, ids, 8)
    # Each from all that stands before it, in one pass.
    logits = model(np.concatenate([ids, found], axis=1))[:, ids.shape[1] - 1 : -1]
    np.testing.assert_array_equal(found, np.argmax(logits, axis=-1))


def test_draws_follow_the_seed_and_the_chances(tmp_path: Path) -> None:
    model = load_model(write_decoder(tmp_path / "llama", "llama"))
    ids = PROMPTS % 50
    drawn = follow(model, ids, 6, temperature=1.0, seed=1)
    np.testing.assert_array_equal(drawn, follow(model, ids, 6, temperature=1.0, seed=1))
    assert not np.array_equal(drawn, follow(model, ids, 6, temperature=1.0, seed=2))
    coldest = follow(model, ids, 6, temperature=1e-4)
    np.testing.assert_array_equal(coldest, follow(model, ids, 6))
    one = follow(model, ids, 6, temperature=1.0, top_p=1e-6)
    np.testing.assert_array_equal(one, follow(model, ids, 6))


def test_top_p_draws_from_the_fewest_that_have_the_chance() -> None:
    logits = jnp.log(jnp.array([[0.05, 0.5, 0.15, 0.3]]))
    for top_p, kept in ((0.5, {1}), (0.6, {1, 3}), (0.81, {1, 2, 3}), (1.0, {0, 1, 2, 3})):
        keys = jax.random.split(jax.random.key(0), 300)
        drawn = [int(_chosen(logits, 1.0, top_p, key)[0]) for key in keys]
        assert set(drawn) == kept
        if top_p == 0.6:  # 5 to 3
            assert 0.5 < np.mean(np.array(drawn) == 1) < 0.75


def test_the_command_prints_the_continuation(tmp_path: Path, capsys: Any) -> None:
    folder = write_decoder(tmp_path / "llama", "llama", eos_token_id=49)
    told = generate(folder, "w1 w2 w3", tokens=5)
    assert told.prompt == 3
    assert main(["generate", str(folder), "--prompt", "w1 w2 w3", "--tokens", "5"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{told.text}\n"
    assert "3 prompt tokens read" in printed.err
    assert len(told.text.split()) == told.tokens <= 5


def test_the_end_of_a_text_ends_it(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "llama", "llama")
    first = generate(folder, "w1 w2 w3", tokens=3).text.split()
    ends = write_decoder(tmp_path / "ends", "llama", eos_token_id=[0, int(first[1][1:])])
    assert generate(ends, "w1 w2 w3", tokens=3).text.split() == first[:1]


def test_what_cannot_be_continued(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "llama", "llama")
    with pytest.raises(LpafError, match=r"3 prompt tokens and 14 new ones exceed the 16"):
        generate(folder, "w1 w2 w3", tokens=14)
    with pytest.raises(LpafError, match="the prompt is empty"):
        generate(folder, "", tokens=4)
    assert main(["generate", str(folder), "--prompt", "w1", "--top-p", "0"]) == 2


def test_a_file_of_llama_cpp_is_used_as_it_is(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "tiny.gguf", "llama", "Q8_0")
    text = tmp_path / "text.txt"
    text.write_text("In the thin morning the film begins.\n" * 3)
    assert main(["generate", str(file), "--prompt", "In the", "--tokens", "3"]) == 0
    assert main(["evaluate", str(file), "--data", str(text), "--length", "16"]) == 0
    assert main(["inspect", str(file)]) == 0
    printed = capsys.readouterr()
    assert '"perplexity"' in printed.out
    assert "batch 1/" in printed.err

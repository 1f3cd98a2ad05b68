"""Truncations between which adapters learn: sizes, what is kept, and going on after a kill."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lpaf_jax.core.errors import LpafError
from lpaf_jax.runs import pipeline
from lpaf_jax.runs.settings import make_settings
from tests.tiny import ENCODER, HIDDEN, SIDES, Tiny

CHOSEN: dict[str, Any] = {
    "recipe": "lora-svd",
    "params": 0.4,
    "lora": 3,
    "truncations": 3,
    "lora_epochs": 1.0,
    "lora_lr": 1e-2,
    "tune_epochs": 0.5,
    "quiet": True,
}


def run(tiny: Tiny, out: Path, **changes: Any) -> dict[str, Any]:
    return dict(pipeline.compress(**tiny.chosen(out, **(CHOSEN | changes))))


def weights(out: Path, stage: str = "stages/factorized") -> dict[str, np.ndarray]:
    return dict(load_file(out / stage / "model.safetensors"))


@pytest.fixture(scope="module")
def made(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, int]]]:
    """The folder of a whole run, which nobody changes, and the ranks of each truncation."""
    from lpaf_jax import factorization

    whole, ranks = factorization.factorize, []

    def notes(*given: Any, **chosen: Any) -> Any:
        found = whole(*given, **chosen)
        ranks.append({path: solution.factors.a.shape[1] for path, solution in found.items()})
        return found

    folder = tmp_path_factory.mktemp("compensated") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factorization, "factorize", notes)
        run(tiny, folder)
    return folder, ranks


@pytest.fixture(scope="module")
def finished(made: tuple[Path, list[dict[str, int]]]) -> Path:
    return made[0]


def test_ranks_fall_along_a_cubic_from_full_rank(
    made: tuple[Path, list[dict[str, int]]],
) -> None:
    _, ranks = made
    assert len(ranks) == 3
    for path, rank in ranks[-1].items():
        expected = [rank + round((HIDDEN - rank) * x**3) for x in (2 / 3, 1 / 3, 0)]
        assert [found[path] for found in ranks] == expected


def test_the_factors_have_the_ranks_of_their_share(
    tiny: Tiny, finished: Path, tmp_path: Path
) -> None:
    before, after = weights(finished, "stages/dense"), weights(finished)
    rank = int(0.4 * ENCODER / SIDES)
    downs = [x for name, x in after.items() if name.endswith("down.weight")]
    assert {x.shape[0] for x in downs} == {rank}
    # Adapters learnt something on the way: by the same cut alone the factors are others.
    alone = tmp_path / "alone"
    chosen = {"recipe": "kfac-svd", "importance": "fisher-rows", "ranks": "uniform"}
    pipeline.compress(
        **tiny.chosen(alone, params=0.4, tune_epochs=0.0, quiet=True, reuse=finished, **chosen)
    )
    name = "bert.encoder.layer.0.attention.self.query"
    found, cut = (
        x[f"{name}.up.weight"] @ x[f"{name}.down.weight"] for x in (after, weights(alone, "model"))
    )
    assert found.shape == cut.shape
    assert np.linalg.norm(found - cut) > 1e-2 * np.linalg.norm(cut)
    # All else is as it was.
    same = {n for n in after if "down" not in n and "up." not in n}
    assert all(np.array_equal(before[n], after[n]) for n in same)
    page = " ".join((finished / "report.html").read_text().split())
    assert (
        "In each of 3 rounds, adapters (LoRA) of rank 3 are trained beside the frozen matrices"
    ) in page


@pytest.mark.slow
@pytest.mark.parametrize(("moves", "at"), [("", 3), ("biases", 1)])
def test_a_killed_run_ends_as_an_unbroken_one(
    tiny: Tiny,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moves: str,
    at: int,
) -> None:
    """Killed in a truncation: those before it are on disk, with the biases that they moved."""
    from lpaf_jax import factorization

    chosen: dict[str, Any] = {"solver": "affine", "importance": "centred"} if moves else {}
    if moves:
        finished = tmp_path / "unbroken"
        run(tiny, finished, **chosen)

    whole, calls = factorization.factorize, []

    def dies(*given: Any, **chosen: Any) -> Any:
        calls.append(chosen["params"])
        if len(calls) == at:
            raise KeyboardInterrupt
        return whole(*given, **chosen)

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(factorization, "factorize", dies)
        with pytest.raises(KeyboardInterrupt):
            run(tiny, out, **chosen)
    calls.clear()
    counted = []
    monkeypatch.setattr(
        factorization,
        "factorize",
        lambda *given, **chosen: counted.append(chosen["params"]) or whole(*given, **chosen),
    )
    run(tiny, out, **chosen)
    assert len(counted) == 3 - (at - 1)
    expected, found = weights(finished), weights(out)
    for name, x in expected.items():
        np.testing.assert_allclose(found[name], x, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": None}, "lora is None"),
        ({"truncations": 0}, "at least 1"),
        ({"lora_epochs": 0.0}, "more than 0"),
        ({"lora_lr": 1.0}, r"in \(0, 1\)"),
        ({"rank": 4, "params": None}, "use --params"),
        ({"solver": "kronecker", "importance": "none"}, "does not give two thin factors"),
    ],
)
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LpafError, match=message):
        make_settings("minilm", task="rotten_tomatoes", out="run", **(CHOSEN | changes))


def test_a_text_alone_is_no_task() -> None:
    with pytest.raises(LpafError, match="trains during compression"):
        make_settings("smollm2", calibration="imdb", recipe="lora-svd", out="run")

"""Models without a tenth of their spectra, against numpy."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lpaf_jax.checkpoints import load_model
from lpaf_jax.cli import main
from lpaf_jax.evaluation.serve import evaluate_file, judge_of
from lpaf_jax.evaluation.tenths import GROUPS, _order, _part, dense_judge, without_tenths
from lpaf_jax.models import compressible, parameters
from tests.tiny_decoder import write_decoder, write_text

RANDOM = np.random.default_rng(0)
W = RANDOM.normal(size=(23, 17))
X = RANDOM.normal(size=(200, 23)) * np.geomspace(1, 30, 23)


@pytest.mark.parametrize("squared", [None, RANDOM.gamma(1.0, size=23), X.T @ X / len(X)])
def test_an_order_is_that_of_the_metric(squared: Any) -> None:
    order = _order(W, squared)
    metric = np.eye(23) if squared is None else np.diag(squared) if squared.ndim == 1 else squared
    # T a_j are orthogonal, of falling norm; b_j are orthonormal; all ten parts are W.
    energy = order.a.T @ metric @ order.a
    np.testing.assert_allclose(energy, np.diag(np.diag(energy)), atol=1e-8 * energy.max())
    assert (np.diff(np.diag(energy)) <= 0).all()
    np.testing.assert_allclose(order.b @ order.b.T, np.eye(17), atol=1e-10)
    parts = [np.asarray(_part(order, group)) for group in range(GROUPS)]
    np.testing.assert_allclose(sum(parts), W, atol=1e-5)
    assert [np.linalg.matrix_rank(part, tol=1e-4) for part in parts] == [
        1,
        2,
        2,
        1,
        2,
        2,
        1,
        2,
        2,
        2,
    ]


@pytest.fixture(scope="module")
def found(finished: Path, held_out: Path) -> dict[str, Any]:
    return without_tenths(dense_judge(finished / "stages" / "dense", held_out))


def test_a_classifier_without_tenths(found: dict[str, Any], finished: Path, held_out: Path) -> None:
    dense = finished / "stages" / "dense"
    told = evaluate_file(dense, held_out)
    assert found["metric"] == told["primary"] == "accuracy"
    assert found["whole"] == told["accuracy"]
    assert set(found["orders"]) == {"plain", "rows", "inputs"}
    judge, params = judge_of(dense, held_out), parameters(load_model(dense))
    for group in (0, 6):
        changed = {}
        for path, w in compressible(params).items():
            u, s, vt = np.linalg.svd(np.asarray(w, np.float64), full_matrices=False)
            s[group * len(s) // 10 : (group + 1) * len(s) // 10] = 0
            changed[path] = jnp.asarray((u * s) @ vt, jnp.float32)
        expected = judge.score(params | changed)["accuracy"]
        assert found["orders"]["plain"][group] == pytest.approx(expected, abs=0.04)


def test_a_decoder_by_a_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_decoder(tmp_path / "gpt2", "gpt2")
    text = write_text(tmp_path / "text.txt", 71, seed=3)
    out = tmp_path / "out"
    assert main(["analyze", str(model), "--tenths", str(text), "--out", str(out)]) == 0
    found = json.loads((out / "analysis.json").read_text())["tenths"]
    assert found["metric"] == "perplexity"
    assert found["whole"] == pytest.approx(evaluate_file(model, text)["perplexity"])
    assert all(len(scores) == GROUPS for scores in found["orders"].values())
    told = " ".join(capsys.readouterr().out.split())
    assert "Tenths by the inputs: the perplexity is" in told
    assert "Without each tenth of the spectra" in (out / "analysis.html").read_text()

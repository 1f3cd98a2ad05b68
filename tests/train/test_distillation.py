"""Distillation against PyTorch's divergence and numpy in float64."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax

from lpaf_jax.models.functional import Outputs
from lpaf_jax.train import (
    CLASSIFICATION,
    SPANS,
    Keys,
    distillation_kl,
    distilled,
    dual_loss,
    task_loss,
    teacher_parameters,
    with_teacher,
)
from tests.programs import equations

BATCH, LENGTH, WIDTH, LABELS, LAYERS = 4, 5, 3, 3, 2
KEYS = Keys(*jax.random.split(jax.random.key(3)))
STEP = jnp.int32(0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(6)


@pytest.fixture
def batch(rng: np.random.Generator) -> dict[str, np.ndarray]:
    lengths = np.array([[5], [2], [3], [4]])
    return {
        "x": rng.normal(size=(BATCH, LENGTH, WIDTH)).astype(np.float32),
        "attention_mask": (np.arange(LENGTH) < lengths).astype(np.int32),
        "labels": np.array([0, 2, 1, 1], np.int32),
        "weight": np.array([1, 1, 1, 0], np.float32),
    }


def make(rng: np.random.Generator) -> dict[str, jax.Array]:
    shapes = {"w": (WIDTH, WIDTH), "head": (WIDTH, LABELS)}
    return {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}


class Model:
    """A pooled linear model with noise for dropout, which it notes, and hidden states."""

    def __init__(self, hidden: bool = False) -> None:
        self.hidden, self.noise, self.passes = hidden, [], 0

    def __call__(
        self, params: Any, fixed: Any, batch: Any, key: Any = None, draws: Any = None
    ) -> Any:
        self.passes += 1
        x = batch["x"]
        if key is not None:
            noise = jax.random.normal(key, x.shape)
            jax.debug.callback(lambda n: self.noise.append(np.asarray(n, float)), noise)
            x = x + noise
        if draws is not None:
            x = x * (1 + draws.sum())
        states = jnp.stack([x, jnp.tanh(x @ params["w"])])
        logits = states[1, :, 0] @ params["head"]
        return Outputs(logits, states) if self.hidden else logits


def exact(params: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits and hidden states in float64."""
    w, head = (np.asarray(params[name], float) for name in ("w", "head"))
    states = np.stack([x, np.tanh(x @ w)])
    return states[1, :, 0] @ head, states


def mean(rows: np.ndarray, batch: Any) -> float:
    return float((batch["weight"] * rows).sum() / batch["weight"].sum())


def crossed(logits: np.ndarray, batch: Any) -> float:
    return mean(-log_softmax(logits, -1)[np.arange(BATCH), batch["labels"]], batch)


def apart(student: np.ndarray, teacher: np.ndarray, temperature: float, batch: Any) -> float:
    rows = rel_entr(softmax(teacher / temperature, -1), softmax(student / temperature, -1)).sum(-1)
    return temperature**2 * mean(rows, batch)


def hidden_apart(student: np.ndarray, teacher: np.ndarray, batch: Any) -> float:
    """Token by token."""
    rows = []
    for i in range(BATCH):
        places = np.flatnonzero(batch["attention_mask"][i])
        gaps = [np.square(student[j, i, t] - teacher[j, i, t]) for j in range(2) for t in places]
        rows.append(np.mean(gaps))
    return mean(np.array(rows), batch)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distance_is_that_of_torch(temperature: float, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    student, teacher = rng.normal(0, 2, (2, BATCH, LABELS)).astype(np.float32)
    theirs = torch.tensor(student, requires_grad=True)
    log_softmax = torch.nn.functional.log_softmax
    loss = temperature**2 * torch.nn.functional.kl_div(
        log_softmax(theirs / temperature, -1),
        log_softmax(torch.tensor(teacher) / temperature, -1),
        log_target=True,
        reduction="batchmean",
    )
    loss.backward()
    value, grad = jax.value_and_grad(distillation_kl)(
        student, teacher, np.ones(BATCH, np.float32), temperature
    )
    assert float(value) == pytest.approx(loss.item(), rel=1e-5)
    np.testing.assert_allclose(grad, theirs.grad, atol=1e-6)


def test_loss_with_hidden_states_is_the_formula(batch: Any, rng: np.random.Generator) -> None:
    student, teacher = make(rng), make(rng)
    objective = distilled(CLASSIFICATION, 0.6, temperature=2.0, hidden=0.3)
    model = Model(hidden=True)
    loss = with_teacher(task_loss(model, objective), Model(hidden=True))
    value, _ = jax.jit(loss)(student, teacher_parameters(teacher), batch, KEYS, STEP)
    jax.effects_barrier()
    (noise,) = model.noise
    ours, states = exact(student, batch["x"] + noise)
    theirs, their_states = exact(teacher, batch["x"].astype(float))
    expected = crossed(ours, batch) + 0.6 * apart(ours, theirs, 2.0, batch)
    expected += 0.3 * hidden_apart(states, their_states, batch)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    # What stands under the padding, and in rows that only fill the batch up, does not count.
    other = {**batch, "x": batch["x"].copy()}
    other["x"][batch["attention_mask"] == 0] += 5
    other["x"][3] += 5
    again, _ = jax.jit(loss)(student, teacher_parameters(teacher), other, KEYS, STEP)
    assert float(again) == pytest.approx(float(value), rel=1e-6)


def test_loss_with_attention_is_the_formula(batch: Any, rng: np.random.Generator) -> None:
    shape = (2, BATCH, 3, LENGTH, LENGTH)
    ours, theirs = (
        Outputs(rng.normal(size=(BATCH, LABELS)), None, log_softmax(rng.normal(size=shape), -1))
        for _ in range(2)
    )
    objective = distilled(CLASSIFICATION, 0.6, temperature=2.0, maps=0.3)
    value = objective.loss(ours, {**batch, "teacher": theirs})
    p, q = (np.exp(np.asarray(x.maps)) for x in (theirs, ours))
    apart_of = rel_entr(p, q).sum(-1).mean((0, 2))
    tokens = batch["attention_mask"]
    rows = (tokens * apart_of).sum(-1) / np.maximum(tokens.sum(-1), 1)
    expected = crossed(ours.logits, batch) + 0.6 * apart(ours.logits, theirs.logits, 2.0, batch)
    assert float(value) == pytest.approx(expected + 0.3 * mean(rows, batch), rel=1e-5)
    with pytest.raises(ValueError, match=r"attention maps are missing.*maps=True"):
        objective.loss(ours._replace(maps=None), {**batch, "teacher": theirs})


def test_two_passes_learn_from_one_of_the_teacher(batch: Any, rng: np.random.Generator) -> None:
    student, teacher = make(rng), make(rng)
    model, master = Model(), Model()
    objective = distilled(CLASSIFICATION, 0.6, temperature=2.0)
    loss = with_teacher(
        dual_loss(model, lambda step: jnp.float32(0), LAYERS, 0.7, objective), master
    )
    run = jax.jit(loss)
    value, logged = run(student, teacher_parameters(teacher), batch, KEYS, STEP)
    jax.effects_barrier()
    assert len(model.noise) == 2
    assert master.noise == []
    assert master.passes == 1
    theirs, _ = exact(teacher, batch["x"].astype(float))
    ours = [exact(student, batch["x"] + noise)[0] for noise in model.noise]
    tasks = [crossed(y, batch) + 0.6 * apart(y, theirs, 2.0, batch) for y in ours]
    p, q = (softmax(y, -1) for y in ours)
    gap = mean(0.5 * (rel_entr(p, q) + rel_entr(q, p)).sum(-1), batch)
    assert float(logged["task_loss"]) == pytest.approx(np.mean(tasks), rel=1e-5)
    assert float(logged["consistency"]) == pytest.approx(gap, rel=1e-4)
    assert float(value) == pytest.approx(np.mean(tasks) + 0.7 * gap, rel=1e-5)
    # Nor does the pair of passes make a pair of the teacher's.
    program = equations(loss, student, teacher_parameters(teacher), batch, KEYS, STEP)
    sizes = [e.outvars[0].aval.size for e in program if e.primitive.name == "tanh"]
    assert sum(sizes) == 3 * batch["x"].size


@pytest.mark.parametrize("passes", [1, 2])
def test_the_teacher_gets_no_gradient(passes: int, batch: Any, rng: np.random.Generator) -> None:
    student, fixed = make(rng), teacher_parameters(make(rng))
    objective = distilled(CLASSIFICATION, 0.6, hidden=0.3)
    model = Model(hidden=True)
    inner = (
        task_loss(model, objective)
        if passes == 1
        else dual_loss(model, lambda step: jnp.float32(0.5), LAYERS, 1.0, objective)
    )
    loss = with_teacher(inner, model)
    grads, to_fixed = jax.jit(jax.grad(lambda *a: loss(*a)[0], (0, 1)))(
        student, fixed, batch, KEYS, STEP
    )
    assert fixed.keys() == {"teacher.w", "teacher.head"}
    assert not any(np.any(g) for g in to_fixed.values())
    assert all(np.any(g) for g in grads.values())


def test_a_student_that_is_its_teacher_has_the_loss_of_the_task(
    batch: Any, rng: np.random.Generator
) -> None:
    params = make(rng)

    def forward(params: Any, fixed: Any, batch: Any, key: Any = None) -> Any:
        return Model(hidden=True)(params, fixed, batch)

    objective = distilled(CLASSIFICATION, 5.0, temperature=3.0, hidden=7.0)
    taught = with_teacher(task_loss(forward, objective), forward)
    value, _ = taught(params, teacher_parameters(params), batch, KEYS, STEP)
    expected = crossed(exact(params, batch["x"].astype(float))[0], batch)
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_what_the_student_is_given_beside_the_teacher(batch: Any, rng: np.random.Generator) -> None:
    """Its own masks reach it, and the batch of its caller is left as it was."""
    seen = {}

    def forward(params: Any, fixed: Any, batch: Any, key: Any = None) -> Any:
        seen[key is None] = dict(fixed)
        return Model()(params, fixed, batch)

    fixed = {"layer.mask": jnp.ones(2), **teacher_parameters(make(rng))}
    before = dict(batch)
    with_teacher(task_loss(forward, distilled(CLASSIFICATION)), forward)(
        make(rng), fixed, batch, KEYS, STEP
    )
    assert "layer.mask" in seen[False]
    assert seen[True] == {}  # a teacher has no masks
    assert batch.keys() == before.keys()


@pytest.mark.parametrize("which", ["student", "teacher"])
def test_missing_hidden_states(which: str, batch: Any, rng: np.random.Generator) -> None:
    student, teacher = Model(hidden=which != "student"), Model(hidden=which != "teacher")
    loss = with_teacher(task_loss(student, distilled(CLASSIFICATION, hidden=0.5)), teacher)
    with pytest.raises(ValueError, match=r"hidden states are missing.*hidden=True"):
        loss(make(rng), teacher_parameters(make(rng)), batch, KEYS, STEP)


def test_spans_are_distilled_too(rng: np.random.Generator) -> None:
    batch = {
        "attention_mask": np.ones((BATCH, LENGTH), np.int32),
        "labels": np.zeros((BATCH, 2), np.int32),
        "weight": np.ones(BATCH, np.float32),
    }
    student, teacher = rng.normal(size=(2, BATCH, LENGTH, 2)).astype(np.float32)
    value = distilled(SPANS, 0.4, temperature=2.0).loss(student, {**batch, "teacher": teacher})
    expected = float(SPANS.loss(student, batch)) + 0.4 * np.mean(
        [apart(student[..., e].astype(float), teacher[..., e], 2.0, batch) for e in (0, 1)]
    )
    assert float(value) == pytest.approx(expected, rel=1e-5)

"""One of several processes that run the same stage: `worker.py folder process processes port slow`.

What it found goes to `folder/<process>.pickle`; checkpoints lie in `folder/states`, which all
processes share. With `slow` it tells of each step and takes its time, to be sent a signal.
"""

import faulthandler
import pickle
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from lpaf_jax.core.errors import Terminated
from lpaf_jax.core.processes import on_host
from lpaf_jax.data import Encoded
from lpaf_jax.factorization import factorize
from lpaf_jax.importance import Subject
from lpaf_jax.train import (
    Checkpoints,
    Layout,
    Loop,
    initial_state,
    make_layout,
    make_step,
    predict,
    run_steps,
)
from tests.train.spread import CONFIG, LENGTH, SMALL, by_name, prune_by_matrix, words

DEVICES = 2  # of each process
EXAMPLES, BATCH, STEPS = 80, 8, 20  # ten steps an epoch
RANK = 3


def _examples() -> Encoded:
    rng = np.random.default_rng(4)
    ids = [
        rng.integers(0, CONFIG.vocab_size, rng.integers(2, LENGTH + 1)).astype(np.int32)
        for _ in range(EXAMPLES)
    ]
    labels = np.array([text[0] % 2 for text in ids], np.int32)
    return Encoded(ids, [np.zeros_like(i) for i in ids], labels, max_length=LENGTH, pad_id=0)


class Quiet:
    def row(self, row: dict[str, Any]) -> None:
        pass


def job(states: Path, layout: Layout | None, slow: bool = False) -> dict[str, Any]:
    """Train from where `states` stands, factorize what was pruned; everything on the host."""
    data, case = _examples(), prune_by_matrix()
    forward = jax.jit(words)
    found: dict[str, Any] = {"losses": [], "accuracies": []}
    jitted = make_step(case.loss, case.optimizer, layout=layout)

    def step(*args: Any) -> Any:
        if slow:
            print("step", flush=True)
            time.sleep(0.1)
        state, logged = jitted(*args)
        found["losses"].append(float(logged["loss"]))
        return state, logged

    def validate(params: Any) -> float:
        logits = predict(forward, params, data, BATCH, layout=layout)
        found["accuracies"].append(float(np.mean(logits.argmax(-1) == data.labels)))
        return found["accuracies"][-1]

    checkpoints = Checkpoints(states)
    state = checkpoints.restore(initial_state(case.params, case.optimizer, layout))
    found["began at"] = int(state.step)
    stage = Loop("prune", data, BATCH, STEPS, seed=5, validate=validate)
    try:
        how = {"monitor": Quiet(), "checkpoints": checkpoints, "layout": layout}
        state = run_steps(stage, step, state, {}, until=STEPS, **how)
    except Terminated as end:
        return found | {"ended": end}
    checkpoints.close()
    kernels = ("first", "second")
    pruned = on_host([{k: tree[k] for k in kernels} for tree in state.opt_state[1:4]])
    subject = Subject(nnx.Module(), *pruned, {}, lambda count=None: iter(()), lambda *_: 0)
    solutions = factorize(subject, rank=RANK, importance="score", solver="row", floor=0.1)
    found["products"] = {p: np.asarray(each.factors.dense()) for p, each in solutions.items()}
    return found | {"state": by_name(on_host(state)), "cut": _cut(state)}


def _cut(state: Any) -> set[str]:
    """The arrays of which no process holds the whole."""
    return {
        name
        for name, x in by_name(state).items()
        if not x.is_fully_addressable
        and sum({str(s.index): s.data.size for s in x.addressable_shards}.values()) < x.size
    }


def main(folder: Path, process: int, processes: int, port: str, slow: bool) -> None:
    faulthandler.dump_traceback_later(120, repeat=True)  # where it hangs, if it does
    jax.config.update("jax_num_cpu_devices", DEVICES)
    address = f"127.0.0.1:{port}"
    # The test sees to it that nothing hangs; a machine that is busy or asleep is no dead process.
    jax.distributed.initialize(
        address,
        processes,
        process,
        coordinator_bind_address=address,
        heartbeat_timeout_seconds=600,
    )
    layout = make_layout(fsdp=DEVICES * processes, small=SMALL)
    found = job(folder / "states", layout, slow)
    ended = found.pop("ended", None)
    found["devices"] = jax.device_count(), jax.local_device_count()
    (folder / f"{process}.pickle").write_bytes(pickle.dumps(found))
    if ended is not None:
        raise ended


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5] == "slow")

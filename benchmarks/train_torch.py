"""The PyTorch side of `train.py`: plain transformers and the formulas as they are written.

Run by `train.py`, one process a group; prints JSON.
"""

import importlib.util
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from train_common import DRAW, KEPT, TOTAL_STEPS, Job, random_batch, read_job, take_turns

RATE, DECAY, CLIP, WARM_UP = 8e-5, 0.01, 1.0, 100  # as the stages of `lpaf compress` have them


def main() -> None:
    print(json.dumps(measure(read_job())))


def measure(job: Job) -> dict[str, Any]:
    if importlib.util.find_spec("torch") is None:
        return {"missing": "PyTorch is not installed"}
    import torch
    import transformers

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if job.platform not in (None, "cpu", "gpu"):
        return {"missing": f"PyTorch has nothing to set beside JAX on a {job.platform}"}
    if job.platform == "gpu" and device.type != "cuda":
        return {"missing": "PyTorch sees no GPU"}
    if job.platform == "cpu":  # as JAX in the process beside this one
        device = torch.device("cpu")
        torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    kinds = ["fine-tune", "mixed"] if job.group == "25" else ["fine-tune"]
    models = {kind: model_of(kind, job).to(device).train() for kind in kinds}
    steps = {kind: step_of(kind, model, job) for kind, model in models.items()}
    rows: dict[str, dict[str, Any]] = {kind: {} for kind in kinds}
    for length in job.lengths:
        batch = random_batch(job, models[kinds[0]].config.vocab_size, length)
        turns = {kind: partial(step, batch) for kind, step in steps.items()}
        wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
        ms = take_turns(turns, lambda last, wait=wait: wait(), job)
        for kind in kinds:
            loss = float(turns[kind]())
            if not np.isfinite(loss):
                raise SystemExit(f"{job.group}/{kind}: the loss is {loss}")
            size = sum(p.numel() for p in models[kind].parameters())
            rows[kind][str(length)] = {"ms": ms[kind], "parameters": size}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), "versions": versions, "rows": rows}


def model_of(kind: str, job: Job) -> Any:
    """The pretrained model with every linear layer of its encoder replaced."""
    import torch
    from torch import nn
    from transformers import BertForSequenceClassification

    class Mixed(nn.Module):
        """`y = (1 − z)(x A) B + z x (M ∘ W) + c`, one draw of z a pass, as the paper writes it."""

        def __init__(self, dense: nn.Linear, rank: int):
            super().__init__()
            m, n = dense.in_features, dense.out_features
            self.weight, self.bias = dense.weight, dense.bias
            self.register_buffer("mask", (torch.rand(n, m) < KEPT).float())
            self.a = nn.Parameter(torch.randn(m, rank) / m**0.5)
            self.b = nn.Parameter(torch.randn(rank, n) / rank**0.5)

        def forward(self, x: Any) -> Any:
            z = torch.bernoulli(torch.full((), DRAW, device=x.device))
            dense = nn.functional.linear(x, self.mask * self.weight)
            return (1 - z) * ((x @ self.a) @ self.b) + z * dense + self.bias

    model = BertForSequenceClassification.from_pretrained(job.folder, num_labels=2)
    if job.rank is None:
        return model
    for path, layer in list(model.bert.encoder.named_modules()):
        if isinstance(layer, nn.Linear):
            down = nn.Linear(layer.in_features, job.rank, bias=False)
            pair = nn.Sequential(down, nn.Linear(job.rank, layer.out_features))
            new = Mixed(layer, job.rank) if kind == "mixed" else pair
            model.bert.encoder.set_submodule(path, new)
    return model


def step_of(kind: str, model: Any, job: Job) -> Callable[[dict[str, np.ndarray]], Any]:
    """One training step on a batch of numpy arrays, returning its loss."""
    import torch
    from torch.nn import functional

    plain = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": DECAY}, {"params": plain, "weight_decay": 0.0}],
        lr=RATE,
    )
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: min(t / WARM_UP, (TOTAL_STEPS - t) / (TOTAL_STEPS - WARM_UP)),
    )
    device = next(model.parameters()).device
    half = job.dtype == "bfloat16"

    def logits_of(batch: dict[str, Any]) -> Any:
        inputs = {n: batch[n] for n in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            return model(**inputs).logits.float()

    def loss_of(batch: dict[str, Any]) -> Any:
        first = logits_of(batch)
        if kind != "mixed":
            return functional.cross_entropy(first, batch["labels"])
        second = logits_of(batch)
        task = [functional.cross_entropy(x, batch["labels"]) for x in (first, second)]
        log_p, log_q = (functional.log_softmax(x, -1) for x in (first, second))
        apart = 0.5 * ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean()
        return 0.5 * sum(task) + apart

    def step(batch: dict[str, np.ndarray]) -> Any:
        here = {name: torch.from_numpy(x).to(device).long() for name, x in batch.items()}
        loss = loss_of(here)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        rate.step()
        return loss.detach()

    return step


if __name__ == "__main__":
    main()

import json

from lpaf_jax.report.logs import read_log


def test_log_of_a_killed_and_resumed_run(tmp_path):
    path = tmp_path / "train.jsonl"
    rows = [
        {"stage": "finetune", "step": 10, "loss": 0.9},
        {"stage": "finetune", "step": 20, "loss": 0.8},
        {"stage": "finetune", "step": 10, "loss": 0.7},
        {"stage": "finetune", "step": 20, "loss": float("nan")},
        {"stage": "finetune", "step": 5, "loss": 1.0, "sparsity": None},
        {"stage": "finetune", "step": 20, "validation_accuracy": 0.5},
        {"stage": "empty", "step": 1, "note": "no figure"},
        {"step": 3, "loss": 0.1},
        [1],
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text + '{"stage": "prune", "st')
    log = read_log(path)
    assert list(log) == ["finetune"]
    assert log["finetune"].loss == [(5, 1.0), (10, 0.7), (20, 0.8)]
    assert log["finetune"].validation == [(20, 0.5)]
    assert log["finetune"].sparsity == []


def test_no_log_is_an_empty_log(tmp_path):
    assert read_log(tmp_path / "none.jsonl") == {}

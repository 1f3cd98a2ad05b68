from lpaf_jax.report.logs import read_log


def test_curves_of_each_stage(make_run, metrics, log):
    curves = read_log(make_run(metrics, None, log) / "logs" / "train.jsonl")
    assert list(curves) == ["finetune", "prune", "tune"]
    prune = curves["prune"]
    losses = [(r["step"], r["loss"]) for r in log if r["stage"] == "prune" and "loss" in r]
    assert prune.loss == losses
    assert prune.validation == [(186, 0.77), (372, 0.811), (558, 0.802)]
    assert prune.sparsity[-1] == (558, 0.75)
    assert prune.p == curves["tune"].sparsity == []
    assert [step for step, _ in curves["tune"].p] == [step for step, _ in curves["tune"].loss]


def test_no_log_is_an_empty_log(tmp_path):
    assert read_log(tmp_path / "none.jsonl") == {}

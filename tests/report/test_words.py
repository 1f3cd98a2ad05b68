import pytest

from lpaf_jax.report import summary_line
from lpaf_jax.report.words import compared, statement, verdicts


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        (282.0, 156.7, "1.8× faster"),
        (11.7, 15.0, "1.3× slower"),
        (100.0, 100.0, "same"),
        (104.9, 100.0, "same"),
        (100.0, 104.9, "same"),
        (106.0, 100.0, "1.1× faster"),
        (100.0, 106.0, "1.1× slower"),
    ],
)
def test_compared(before, after, words):
    assert compared(before, after, "faster", "slower", "same") == words


def test_summary_is_one_line_with_the_figures_that_count(metrics):
    assert summary_line(metrics) == (
        "MiniLM on Rotten Tomatoes, 50.0 % of the compressible weights: 98.6 % of the accuracy "
        "kept (80.1 % of 81.3 %); file 1.4× smaller (90.9 MB to 64.9 MB); 1.8× faster at batch 32 "
        "and 1.1× faster at batch 1"
    )
    assert "\n" not in summary_line(metrics | {"model": "two\nlines"})


def test_a_local_model_is_called_by_its_last_part(metrics):
    line = summary_line(metrics | {"model": "/home/me/models/tiny", "task": "mine"})
    assert line.startswith("tiny on mine")
    assert summary_line(metrics | {"model": "org/name"}).startswith("org/name on")


def test_a_difference_too_small_to_print_is_not_called_none(metrics):
    metrics["stages"]["final"]["accuracy"] = metrics["stages"]["dense"]["accuracy"] - 1e-4
    assert "less than 0.1 percentage points below" in verdicts(metrics)[0]


def test_a_dense_model_that_has_nothing_right(metrics, stage_of):
    metrics["stages"]["dense"] = metrics["stages"]["final"] = stage_of(0)
    metrics["retained"] = None
    assert "accuracy 0.0 % (before: 0.0 %)" in statement(metrics)


def test_what_got_worse_is_said(metrics, stage_of):
    metrics["stages"]["final"] = stage_of(850)
    metrics["bytes_on_disk"]["final"] = 1.2 * metrics["bytes_on_disk"]["dense"]
    metrics["latency_ms"]["final"]["1"] = {"median": 23.4, "min": 23.0, "max": 24.0}
    text = statement(metrics)
    assert "the file is 1.2× larger".lower() in text.lower()
    assert "2.0× slower at batch 1" in text
    notes = " ".join(verdicts(metrics))
    assert "no better than always answering the most common class (50.0 %)" in notes
    assert "scored 75.8 % before it and 49.8 % after" in notes
    assert "final file is not smaller" in notes
    assert "At batch 1 the final model is 2.0× slower" in notes


def test_noisy_timings_are_called_noisy(metrics):
    def about_batch_32():
        return [note for note in verdicts(metrics) if "batch 32" in note]

    assert about_batch_32() == []
    metrics["latency_ms"]["final"]["32"]["max"] = 400.0
    assert "too noisy" in about_batch_32()[0]

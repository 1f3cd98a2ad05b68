import pytest

from lpaf_jax.report import summary_line
from lpaf_jax.report.facts import moment
from lpaf_jax.report.logs import Phase
from lpaf_jax.report.words import cautions, compared, statement, validation_and_test, verdicts


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
        "MiniLM on Rotten Tomatoes, 50.0 % of the compressible weights, 76.6 % of all: 98.6 % of "
        "the accuracy kept (80.1 % of 81.3 %); 74 test examples lost and 54 won, which may be "
        "chance; file 1.4× smaller (90.9 MB to 64.9 MB); 1.8× faster at batch 32 and not "
        "clearly faster or slower at batch 1"
    )
    assert "\n" not in summary_line(metrics | {"model": "two\nlines"})


def test_what_holds_at_both_batch_sizes_is_said_once(metrics):
    latency = metrics["latency_ms"]
    alike = {end: latency[end] | {"1": latency[end]["32"]} for end in ("dense", "final")}
    said = summary_line(metrics | {"latency_ms": latency | alike})
    assert said.endswith("; 1.8× faster at batch 32 and 1")


def test_a_file_of_before_has_no_pairs(metrics):
    del metrics["paired"]
    assert "(80.1 % of 81.3 %); file 1.4× smaller" in summary_line(metrics)
    assert verdicts(metrics)[0] == "The final model is 1.2 percentage points below the dense one."


def test_a_local_model_is_called_by_its_last_part(metrics):
    line = summary_line(metrics | {"model": "/home/me/models/tiny", "task": "mine"})
    assert line.startswith("tiny on mine")
    assert summary_line(metrics | {"model": "org/name"}).startswith("org/name on")


def test_a_difference_that_chance_brings_often_is_called_so(metrics):
    assert verdicts(metrics)[0] == (
        "The final model is 1.2 percentage points below the dense one: it is wrong on 74 test "
        "examples that the dense one gets right, and right on 54 that the dense one gets wrong. "
        "If the two were equally good, the probability of a difference this large by chance "
        "would be 9.3 %, so it may be chance."
    )


def changed(metrics, stage_of, lost, won, p):
    """The same run with another final model, paired with the same dense one."""
    metrics["stages"]["final"] = stage_of(1387 - lost + won)
    metrics["retained"] = (1387 - lost + won) / 1387
    metrics["paired"] = {"dense_only": lost, "final_only": won, "p": p}
    return metrics


def test_few_swaps_all_one_way_are_hardly_chance_though_the_intervals_overlap(metrics, stage_of):
    run = changed(metrics, stage_of, 20, 0, 1.9e-6)
    assert run["stages"]["final"]["interval95"][1] > run["stages"]["dense"]["interval95"][0]
    assert "by chance would be less than 0.1 %, so it is hardly chance." in verdicts(run)[0]
    assert "20 test examples lost and 0 won, which is hardly chance;" in summary_line(run)


def test_a_gain_is_not_oversold(metrics, stage_of):
    run = changed(metrics, stage_of, 40, 53, 0.2132)
    assert "accuracy 82.1 % (before: 81.3 %)" in statement(run)
    assert "0.8 percentage points above" in verdicts(run)[0]
    assert "21.3 %, so it may be chance" in verdicts(run)[0]


def test_equal_accuracy_is_not_put_down_to_chance(metrics, stage_of):
    run = changed(metrics, stage_of, 31, 31, 1.0)
    assert verdicts(run)[0] == (
        "The final model is as accurate as the dense one: it is wrong on 31 test examples that "
        "the dense one gets right, and right on 31 that the dense one gets wrong."
    )
    assert "31 test examples lost and 31 won;" in summary_line(run)


def test_one_example_is_one(metrics, stage_of):
    run = changed(metrics, stage_of, 1, 1, 1.0)
    assert "; 1 test example lost and 1 won;" in summary_line(run)


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


def validated(*accuracies):
    """A log with nothing but the last validation of each stage."""
    return {
        part: Phase([], [(6, 0.5), (9, accuracy)], [], [])
        for part, accuracy in zip(("finetune", "prune", "tune"), accuracies, strict=True)
    }


def test_validation_that_agrees_with_the_test_needs_no_word(metrics):
    assert validation_and_test(metrics, validated(0.8, 0.8, 0.8)) is None
    assert validation_and_test(metrics, {}) is None
    without_end = {"finetune": validated(0.5, 0.5, 0.5)["finetune"]}
    assert validation_and_test(metrics, without_end) is None


def test_validation_that_falls_otherwise_than_the_test_is_explained(metrics):
    assert validation_and_test(metrics, validated(0.813, 0.827, 0.787)) == (
        "Validation accuracy goes from 82.7 % (pruned) to 78.7 % (final), test accuracy from "
        "80.8 % to 80.1 %. The two are measured on different texts, 853 and 1,706 of them; on "
        "other texts, either could differ by some points: the 95 % intervals of the final model "
        "are 75.8 to 81.3 % (validation) and 78.2 to 82.0 % (test)."
    )


def test_validation_that_is_lower_throughout_is_explained(metrics):
    told = validation_and_test(metrics, {"tune": validated(0, 0, 0.7)["tune"]})
    assert "Validation accuracy ends at 70.0 %, test accuracy at 80.1 %." in told
    assert "differ by some points, though hardly by this much:" in told


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("2026-11-22T11:10:48+00:00", "2026-11-22 11:10 UTC"),
        ("2026-11-22T01:10:48+02:00", "2026-11-21 23:10 UTC"),
        ("2026-11-22T11:10:48", "2026-11-22T11:10:48"),
        ("yesterday", "yesterday"),
    ],
)
def test_times_are_told_to_the_minute(written, shown):
    assert moment(written) == shown


def test_a_language_model_that_is_ruined_is_called_so_with_what_helps(text_metrics):
    assert not any("unusable" in text for text in cautions(text_metrics))
    text_metrics["stages"]["final"]["perplexity"] = 166.3
    for ranks, said in (("share", True), ("loss", False)):
        text_metrics["settings"]["ranks"] = ranks
        [caution] = [text for text in cautions(text_metrics) if "unusable" in text]
        assert "compressed model is unusable: its perplexity is 3.4 times the dense one" in caution
        assert "Keep more (--params), or" in caution
        assert ("--ranks loss" in caution) == said
    for channels, said in (("none", True), ("all", False)):
        text_metrics["settings"]["channels"] = channels
        [caution] = [text for text in cautions(text_metrics) if "unusable" in text]
        assert ("--recipe channels" in caution) == said

"""Lines of GLUE's own archives that are no rows: left out there, and nowhere else."""

import csv

import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import load_task

# Lines as the archive of QQP has them: a question that was broken in two at its end of line, a row
# that ends early, one without a label.
BROKEN = [
    '7\t1\t2\t"What is the evidence',
    '"\tWas he a "real" figure? What is the evidence?\t0',
    "8\t3\t4\tWhere is the second question?",
    "9\t5\t6\tWhat is this?\tWhat is that?\t",
]


def qqp(path, n, tag, broken=(), quoted=False):
    header = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")
    rows = [(i, i, i, f"{tag} sentence {i}", f"{tag} second {i}", i % 2) for i in range(n)]
    if quoted:
        with path.open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t")
            writer.writerows([header, *rows, *broken])
        return
    lines = ["\t".join(map(str, row)) for row in (header, *rows)]
    path.write_text("\n".join([*lines[:20], *broken, *lines[20:]]) + "\n")


def test_broken_lines_of_qqps_archive_are_left_out_and_counted(tmp_path):
    qqp(tmp_path / "train.tsv", 200, "train", BROKEN)
    qqp(tmp_path / "dev.tsv", 30, "dev", BROKEN[2:3])
    task = load_task("qqp", data=tmp_path)
    assert (len(task.train) + len(task.validation), len(task.test)) == (200, 30)
    assert (task.broken, task.left_out) == (
        5,
        "lines of the archive left out, as broken or without a label: 5",
    )


def test_an_archive_without_broken_lines_says_nothing_of_them(tmp_path):
    for stem, n in (("train", 200), ("dev", 30)):
        qqp(tmp_path / f"{stem}.tsv", n, stem)
    task = load_task("qqp", data=tmp_path)
    assert (task.broken, task.left_out) == (0, None)


def test_quotes_around_several_lines_lose_no_row_of_a_copy(tmp_path):
    more = (200, 7, 7, "train sentence\n200", "train second\n200", 0)
    qqp(tmp_path / "train.tsv", 200, "train", [more], quoted=True)
    qqp(tmp_path / "dev.tsv", 30, "dev")
    task = load_task("qqp", data=tmp_path)
    texts = task.train.texts + task.validation.texts
    assert (len(texts), "train sentence\n200" in texts, task.broken) == (201, True, 0)


def test_questions_that_are_empty_stay_as_the_hub_has_them(tmp_path):
    qqp(tmp_path / "train.tsv", 200, "train", ["7\t1\t2\t\tWhat is this?\t0"])
    qqp(tmp_path / "dev.tsv", 30, "dev")
    task = load_task("qqp", data=tmp_path)
    assert (task.train.texts + task.validation.texts).count("") == 1
    assert task.broken == 0


def test_an_archive_of_another_format_is_refused_rather_than_left_out(tmp_path):
    (tmp_path / "train.tsv").write_text("question1\tquestion2\tis_duplicate\n" + "a\tb\n" * 9)
    qqp(tmp_path / "dev.tsv", 30, "dev")
    with pytest.raises(LpafError, match=r"train\.tsv, line 2: 2 fields where the header names 3"):
        load_task("qqp", data=tmp_path)


def test_a_broken_line_of_ones_own_file_is_refused(tmp_path):
    qqp(tmp_path / "own.tsv", 200, "own", BROKEN[2:3])
    with pytest.raises(LpafError, match=r"own\.tsv, line 21: 4 fields where the header names 6"):
        load_task(str(tmp_path / "own.tsv"), text_column="question1", label_column="is_duplicate")


def test_rows_without_a_gold_label_are_left_out_and_counted(tmp_path):
    for stem in ("train", "dev_matched"):
        lines = ["sentence1\tsentence2\tgold_label"]
        golds = ("neutral", "entailment", "-")
        lines += [f"{stem} {i}\tsecond\t{golds[i % 3]}" for i in range(90)]
        (tmp_path / f"{stem}.tsv").write_text("\n".join(lines) + "\n")
    task = load_task("mnli", data=tmp_path)
    assert (len(task.test), len(task.train) + len(task.validation), task.broken) == (60, 60, 60)
    assert {int(text.split()[-1]) % 3 for text in task.test.texts} == {0, 1}

import csv
import logging

import numpy as np
import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.data import GLUE, load_task, read_examples

PAIRED = {
    **dict.fromkeys(("mrpc", "rte", "wnli"), ("sentence1", "sentence2")),
    "qnli": ("question", "sentence"),
}


def rows(name, n, tag):
    """Columns of a split as the hub has them; the label is the parity of the row."""
    text, pair = PAIRED.get(name, ("sentence", None))
    columns = {text: [f"{tag} sentence {i}" for i in range(n)]}
    if pair:
        columns[pair] = [f"{tag} second {i}" for i in range(n)]
    return columns | {"label": [i % 2 for i in range(n)], "idx": list(range(n))}


def saved(folder, splits):
    import datasets

    parts = {name: datasets.Dataset.from_dict(columns) for name, columns in splits.items()}
    datasets.disable_progress_bars()
    datasets.DatasetDict(parts).save_to_disk(str(folder))
    return folder


def check(task, n_train, n_held, *, pairs=False):
    assert {text.split()[0] for text in task.test.texts} == {"dev"}
    assert len(task.test) == n_held
    assert sorted(task.train.texts + task.validation.texts) == sorted(
        f"train sentence {i}" for i in range(n_train)
    )
    assert 0 < len(task.validation) < 0.25 * n_train
    for part in (task.train, task.validation, task.test):
        numbers = [int(text.split()[-1]) for text in part.texts]
        assert part.labels.tolist() == [i % 2 for i in numbers]
        if pairs:
            assert part.pairs == [text.replace("sentence", "second") for text in part.texts]
        else:
            assert part.pairs is None


def test_a_copy_saved_by_datasets(tmp_path):
    splits = {"train": rows("sst2", 200, "train"), "validation": rows("sst2", 30, "dev")}
    task = load_task("sst2", data=saved(tmp_path / "sst2", splits))
    assert (task.name, task.label_names) == ("sst2", ["negative", "positive"])
    check(task, 200, 30)


# The names that the hub gives to 0 and 1.
NAMES = {
    "qnli": ["entailment", "not_entailment"],
    "rte": ["entailment", "not_entailment"],
    "wnli": ["not_entailment", "entailment"],
}


@pytest.mark.parametrize("name", NAMES)
def test_sentence_pairs(tmp_path, name):
    splits = {"train": rows(name, 200, "train"), "validation": rows(name, 30, "dev")}
    task = load_task(name, data=saved(tmp_path / name, splits))
    check(task, 200, 30, pairs=True)
    assert task.label_names == NAMES[name]


def test_a_file_of_a_task_is_read_as_any_file_is(tmp_path):
    # The real sentences end in a space.
    lines = ["sentence\tlabel", *(f"sentence {i} \t{i % 2}" for i in range(60)), " null \t1"]
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    test, alone = load_task("sst2", data=tmp_path).test, read_examples(tmp_path / "dev.tsv")
    assert test.texts == alone.texts == [*(f"sentence {i}" for i in range(60)), "null"]
    assert test.labels.tolist() == alone.labels.tolist()


@pytest.mark.parametrize(
    "names",
    [
        ("train.parquet", "validation.parquet"),
        ("train-00000-of-00001.parquet", "validation-00000-of-00001.parquet"),
        ("train.csv", "validation.csv"),
        ("train.tsv", "validation.parquet"),
    ],
)
def test_a_folder_of_files(tmp_path, names):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, n, tag in zip(names, (200, 30), ("train", "dev"), strict=True):
        columns = rows("mrpc", n, tag)
        if name.endswith(".parquet"):
            pq.write_table(pa.table(columns), tmp_path / name)
            continue
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    check(load_task("mrpc", data=str(tmp_path)), 200, 30, pairs=True)


# The columns of each archive of gluebenchmark.com, and which of them hold text, pair and label.
ARCHIVES = {
    "sst2": ("sentence label", "0 - 1"),
    "cola": ("", "3 - 1"),  # no header: source, label, star, sentence
    "mrpc": ("Quality|#1 ID|#2 ID|#1 String|#2 String", "3 4 0"),
    "qqp": ("id qid1 qid2 question1 question2 is_duplicate", "3 4 5"),
    "qnli": ("index question sentence label", "1 2 3"),
    "rte": ("index sentence1 sentence2 label", "1 2 3"),
    "wnli": ("index sentence1 sentence2 label", "1 2 3"),  # whose labels are numbers
    "mnli": ("index promptID genre sentence1 sentence2 label1 gold_label", "3 4 6"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_the_files_of_glues_own_archives(tmp_path, name):
    header, places = ARCHIVES[name]
    columns = header.split("|") if "|" in header else header.split()
    text, pair, label = (int(p) if p != "-" else None for p in places.split())
    names = {name: NAMES[name] for name in ("qnli", "rte")} | {"mnli": ["entailment", "neutral"]}
    for stem, n in (("train", 200), ("dev_matched" if name == "mnli" else "dev", 30)):
        lines = ["\t".join(columns)] if columns else []
        for i in range(n):
            cells = ["x"] * (len(columns) or 4)
            cells[text] = f"{stem[:5].strip('_m')} sentence {i}"
            cells[label] = names.get(name, ["0", "1"])[i % 2]
            if pair:
                cells[pair] = cells[text].replace("sentence", "second")
            lines.append("\t".join(cells))
        (tmp_path / f"{stem}.tsv").write_text("\n".join(lines) + "\n")
    check(load_task(name, data=tmp_path), 200, 30, pairs=pair is not None)


def test_mnli_is_tested_on_the_matched_genres(tmp_path):
    def split(tag):
        numbers = range(99)
        return {
            "premise": [f"{tag} {i}" for i in numbers],
            "hypothesis": [f"second {i}" for i in numbers],
            "label": [i % 3 for i in numbers],
        }

    names = ("train", "validation_matched", "validation_mismatched")
    task = load_task("mnli", data=saved(tmp_path / "mnli", {name: split(name) for name in names}))
    assert {text.split()[0] for text in task.test.texts} == {"validation_matched"}
    assert task.label_names == ["entailment", "neutral", "contradiction"]


def test_mnli_is_tested_on_the_mismatched_genres_if_asked(tmp_path):
    for stem in ("train", "dev_matched", "dev_mismatched"):
        lines = ["sentence1\tsentence2\tgold_label"]
        lines += [f"{stem} {i}\tsecond\t{('neutral', 'entailment')[i % 2]}" for i in range(60)]
        (tmp_path / f"{stem}.tsv").write_text("\n".join(lines) + "\n")
    matched, mismatched = (load_task(name, data=tmp_path) for name in ("mnli", "mnli_mismatched"))
    assert {text.split()[0] for text in matched.test.texts} == {"dev_matched"}
    assert {text.split()[0] for text in mismatched.test.texts} == {"dev_mismatched"}
    assert mismatched.train.texts == matched.train.texts


# The columns of its archive.
STSB = (
    *("index", "genre", "filename", "year", "old_index", "source1", "source2"),
    *("sentence1", "sentence2", "score"),
)


def check_stsb(task, n_train):
    assert (task.kind, task.label_names, task.metrics) == (
        "regression",
        [],
        ("pearson", "spearman"),
    )
    assert len(task.train) + len(task.validation) == n_train
    for part in (task.train, task.validation, task.test):
        assert part.labels.dtype == np.float32
        numbers = [int(text.split()[-1]) for text in part.texts]
        np.testing.assert_array_equal(part.labels, np.float32([score(i) for i in numbers]))
        assert part.pairs == [text.replace("first", "second") for text in part.texts]


def score(i):
    return (5.0, 0.0, 3.8, 2.583)[i % 4]


def test_stsb_from_glues_own_archive(tmp_path):
    for stem, n in (("train", 80), ("dev", 20)):
        lines = ["\t".join(STSB)]
        for i in range(n):
            cells = [str(i), "main-captions", "MSRvid", "2012test", "1", "none", "none"]
            # as in the real file: a quote that is never closed
            cells += [f'{stem} "first {i}', f'{stem} "second {i}', f"{score(i):.3f}"]
            lines.append("\t".join(cells))
        (tmp_path / f"{stem}.tsv").write_text("\n".join(lines) + "\n")
    check_stsb(load_task("stsb", data=tmp_path), 80)


def test_stsb_as_the_hub_has_it(monkeypatch):
    import datasets

    def split(n):
        return datasets.Dataset.from_dict(
            {
                "sentence1": [f"first {i}" for i in range(n)],
                "sentence2": [f"second {i}" for i in range(n)],
                "label": [score(i) for i in range(n)],
                "idx": list(range(n)),
            },
            features=datasets.Features(
                sentence1=datasets.Value("string"),
                sentence2=datasets.Value("string"),
                label=datasets.Value("float32"),
                idx=datasets.Value("int32"),
            ),
        )

    parts = datasets.DatasetDict({"train": split(80), "validation": split(20)})
    monkeypatch.setattr(datasets, "load_dataset", lambda hub, name: parts)
    check_stsb(load_task("stsb"), 80)


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("cola", ("mcc", "accuracy")),
        ("mrpc", ("f1", "accuracy")),
        ("qqp", ("f1", "accuracy")),
        ("stsb", ("pearson", "spearman")),
        *((name, ("accuracy",)) for name in ("sst2", "mnli", "mnli_mismatched", "qnli", "rte")),
    ],
)
def test_every_task_names_the_metrics_glue_reports(name, metrics):
    assert GLUE[name].metrics == metrics


def test_the_mismatched_genres_are_fetched_with_the_rest_of_mnli(monkeypatch):
    import datasets

    def load_dataset(*arguments):
        assert arguments == ("nyu-mll/glue", "mnli")
        raise ConnectionError("far enough")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(LpafError, match="far enough"):
        load_task("mnli_mismatched")


def test_without_a_copy_the_hub_is_asked(monkeypatch):
    import datasets

    def load_dataset(*arguments):
        assert arguments == ("nyu-mll/glue", "sst2")
        parts = {"train": rows("sst2", 200, "train"), "validation": rows("sst2", 30, "dev")}
        return datasets.DatasetDict({k: datasets.Dataset.from_dict(v) for k, v in parts.items()})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    check(load_task("sst2"), 200, 30)


def test_a_hub_out_of_reach_is_one_clear_line(monkeypatch):
    import datasets

    retries = logging.getLogger("huggingface_hub.utils._http")

    def load_dataset(*arguments):
        assert not retries.isEnabledFor(logging.WARNING)
        assert not datasets.is_progress_bar_enabled()
        raise ConnectionError("no route\nand a long story")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    datasets.enable_progress_bars()
    with pytest.raises(
        LpafError, match=r"sst2 cannot be fetched .*no route.*data=FOLDER"
    ) as caught:
        load_task("sst2")
    assert "\n" not in str(caught.value)
    assert datasets.is_progress_bar_enabled()
    assert retries.isEnabledFor(logging.WARNING)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("sentence,label\na,1\n", r"has no file for the split 'validation'"),
        ("text,label\na,1\n", r"split train: no column 'sentence'; the columns are text, label"),
        ("sentence,label\na,-1\n", r"split train: unknown label '-1'"),
    ],
)
def test_incomplete_copies_are_refused(tmp_path, train, message):
    (tmp_path / "train.csv").write_text(train)
    if "no file" not in message:
        (tmp_path / "validation.csv").write_text("sentence,label\nb,0\n")
    with pytest.raises(LpafError, match=message):
        load_task("sst2", data=tmp_path)


def test_two_files_for_one_split_are_refused(tmp_path):
    for name in ("train.csv", "train.tsv"):
        (tmp_path / name).write_text("sentence\tlabel\na\t1\n")
    with pytest.raises(LpafError, match=r"has train\.csv, train\.tsv for the split 'train'"):
        load_task("sst2", data=tmp_path)


def test_damaged_copies_are_refused(tmp_path):
    with pytest.raises(LpafError, match="is not a folder"):
        load_task("sst2", data=tmp_path / "none")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(LpafError, match=r"train\.parquet cannot be read as parquet"):
        load_task("sst2", data=tmp_path)
    (tmp_path / "dataset_dict.json").write_text("{")
    with pytest.raises(LpafError, match="cannot be read by datasets"):
        load_task("sst2", data=tmp_path)


def test_missing_values_and_splits_of_a_saved_copy_are_refused(tmp_path):
    holes = rows("sst2", 10, "train")
    holes["sentence"][3] = None
    splits = {"train": holes, "validation": rows("sst2", 10, "dev")}
    with pytest.raises(LpafError, match="split train: a value is missing in column 'sentence'"):
        load_task("sst2", data=saved(tmp_path / "holes", splits))
    with pytest.raises(LpafError, match="no split 'validation'; it has train, test"):
        load_task(
            "sst2",
            data=saved(
                tmp_path / "short",
                {"train": rows("sst2", 9, "train"), "test": rows("sst2", 9, "t")},
            ),
        )

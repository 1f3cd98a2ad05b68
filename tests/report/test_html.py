import errno
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.report import prose, write_report
from lpaf_jax.report.markup import el, formula
from lpaf_jax.report.prose import explanations
from lpaf_jax.report.sections import matrices
from lpaf_jax.report.svg import BLUE, ORANGE, svg
from tests.report.conftest import told, without_pruning

VOID = {"meta", "br", "path", "use", "image"}
NASTY = "\"><script>alert('x')</script> & $x_1$"


class Page(HTMLParser):
    """Tags, attributes and visible text; raises where tags do not nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        self.text = re.sub(r"\s+", " ", " ".join(self.words).replace("\u00a0", " "))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def page_of(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture
def whole(whole_page):
    return Page(whole_page)


def test_says_first_what_came_out(whole):
    assert (
        "MiniLM, fine-tuned on Rotten Tomatoes, keeps 50.0 % of its compressible weights (76.6 % "
        "of the whole model): 98.6 % of the accuracy kept (80.1 % of 81.3 %). The file is 1.4× "
        "smaller (90.9 MB to 64.9 MB), and inference is 1.8× faster at batch 32 and not "
        "clearly faster or slower at batch 1."
    ) in whole.text
    assert whole.text.index("98.6 %") < whole.text.index("Results")


def test_shows_every_stage_with_its_figures(whole):
    rows = (
        "Dense 81.3 % 79.4 to 83.1 % 100.0 % 100.0 % 90.9 MB 11.7 ms 282 ms",
        "Pruned 80.8 % 78.9 to 82.6 % 100.0 % 100.0 % – – –",
        "Factorized 75.8 % 73.8 to 77.8 % 50.0 % 76.6 % – – –",
        "Final 80.1 % 78.2 to 82.0 % 50.0 % 76.6 % 64.9 MB 10.7 ms 157 ms",
    )
    for row in rows:
        assert row in whole.text


def test_shows_timings_seconds_settings_and_versions(whole):
    for words in (
        "32 texts 282 ms 271 to 307 ms 157 ms 150 to 171 ms 1.8× faster",
        "Pruning 2 min 51 s",
        "9 min 13 s in all. Peak memory: 2.3 GB",
        "MODEL minilm",
        "--mask-every 10",
        "--rank not given",
        "--quiet no",
        "training examples 5,971",
        "share of the training texts that reach the maximum length and may be truncated 0.1 %",
        "jax 0.10.2",
        "recipe lpaf · seed 0 · finished 2026-01-02 03:04 UTC",
    ):
        assert words in whole.text


def test_stages_taken_over_are_told_and_not_counted(make_run, metrics):
    words = "Not counted (reused from another run"
    assert words not in page_of(make_run(metrics)).text
    for name in ("dense", "pruned"):
        del metrics["seconds"][name]
    assert f"{words}, or time unknown): dense, pruned." in page_of(make_run(metrics)).text


def test_draws_every_figure_and_says_what_it_shows(whole):
    labels = [value for tag, key, value in whole.attributes if (tag, key) == ("svg", "aria-label")]
    assert len(labels) == 2 * 3 + 3 + 2 * 3  # three of them once more for narrow screens
    assert len(set(labels)) == len(labels) - 3
    for words in ("step of pruning", "weights removed", "layer 5, ff in", "kept by this run"):
        assert words in whole.text


def test_every_wide_figure_has_a_twin_that_fits_a_phone(whole_page):
    figures = re.findall(r'<div class="(\w*)"><svg [^>]*viewBox="0 0 ([\d.]+) ', whole_page)
    widths = {kind: [float(w) for k, w in figures if k == kind] for kind, _ in figures}
    assert set(widths) == {"wide", "narrow", "card"}
    assert len(widths["wide"]) == len(widths["narrow"]) == 3
    assert max(widths["narrow"] + widths["card"]) <= 360
    phone = whole_page.split("@media (max-width: 40rem)")[1]
    assert ".wide { display: none; }" in phone
    assert ".narrow { display: block; }" in phone


def test_says_whose_method_it_is(whole, whole_page):
    told = "Recipe lpaf: Prune by first-order scores S, minimise Σ<sub>ij</sub> r<sub>i</sub> ("
    assert told in whole_page
    assert "Ren & Zhu" in whole.text


def test_a_formula_has_its_indices_below_and_a_name_stays_as_it_is():
    written = "‖t_v − G_1[v]‖² (W)²_ij E[x_i²] ∂W_ij; SVD_Ft, my_op, `--a_b <x>` & <i>"
    below = re.sub(r"</?sub>", "|", formula(written))
    assert below == (
        "‖t|v| − G|1|[v]‖² (W)²|ij| E[x|i|²] ∂W|ij|; SVD_Ft, my_op, "
        "<code>--a_b &lt;x&gt;</code> &amp; &lt;i&gt;"
    )


def test_matrices_that_are_shown_come_with_their_ranks(metrics, analysis):
    name = analysis["spectra"][0]["name"]
    row = next(row for row in analysis["matrices"] if row["name"] == name)
    row["dense"]["effective_rank"], row["pruned"]["effective_rank"] = 275.8, 91.1
    told = matrices(metrics, analysis)
    assert "layer 0, query (276 → 91)" in told
    assert "Layer 0, query, 384\u00a0×\u00a0384, effective rank 276 → 91." in told
    assert "Of all 36 matrices, those whose effective rank this run lowered" in told


def test_tells_the_means_of_the_matrices(analysis, make_run, metrics):
    mean = {
        "dense": {"effective_rank": 300.0, "energy_rank": 186.4},
        "pruned": {"effective_rank": 264.0, "energy_rank": 159.0},
        "magnitude": {"effective_rank": 270.0, "energy_rank": 187.0},
    }
    mean["pruned"] |= {"empty_rows": 0.037, "empty_columns": 0.0121}
    mean["magnitude"] |= {"empty_rows": 0.001, "empty_columns": 0.0}
    page = page_of(make_run(metrics, analysis | {"mean": mean}))
    for words in (
        "Dense 300 186 – –",
        "Pruned by this run 264 159 3.7 % 1.2 %",
        "Magnitude, on the dense model 270 187 0.1 % 0.0 %",
        "is 2 % below that after magnitude pruning and 12 % below that of the dense model",
    ):
        assert words in page.text


@pytest.mark.parametrize(
    ("rank", "words"),
    [
        (299.0, "is equal to that after magnitude pruning and 25 % below that of the dense"),
        (330.0, "is 10 % above that after magnitude pruning and 18 % below that of the dense"),
    ],
)
def test_pruning_that_lowers_no_rank_is_told(metrics, analysis, rank, words):
    for key, value in (("pruned", rank), ("magnitude", 300.0), ("dense", 400.0)):
        analysis["mean"][key]["effective_rank"] = value
    assert words in matrices(metrics, analysis).replace("\u00a0", " ")


def test_words_are_explained_where_they_are_used(whole, metrics, make_run):
    def explained(page):
        return page.text.split("Glossary")[2].split("Details")[0]

    # The output that is lost, and channels, are told of runs without a task alone.
    told_here = set(prose.GLOSSARY) - {"Output lost", "Channels"}
    assert all(word in explained(whole) for word in told_here)
    svd_ft = explained(page_of(make_run(without_pruning(metrics, "svd"))))
    assert "Factorized" in svd_ft
    for word in ("Effective rank", "Singular values", "Mixed-rank", "Energy"):
        assert word not in svd_ft


def test_loads_nothing_from_anywhere(whole, whole_page):
    loading = {"src", "srcset", "href", "xlink:href", "action", "data", "poster", "background"}
    for tag, key, value in whole.attributes:
        if key in loading:
            assert value.startswith(("#", "data:image/png;base64,")), (tag, key, value[:80])
        elif "http" in value and key not in ("xmlns", "xmlns:xlink", "http-equiv"):
            raise AssertionError((tag, key, value))
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(whole.tags)
    assert "@import" not in whole_page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", whole_page))
    policy = [v for t, k, v in whole.attributes if t == "meta" and k == "content"]
    assert any(value.startswith("default-src 'none';") for value in policy)


def test_ids_are_unique_and_every_reference_has_its_target(whole, whole_page):
    ids = [value for _, key, value in whole.attributes if key == "id"]
    assert len(ids) == len(set(ids))
    used = {v for _, key, v in whole.attributes if key in ("href", "xlink:href") and v[0] == "#"}
    used |= set(re.findall(r"url\((#[^)]*)\)", whole_page))
    assert {target[1:] for target in used} <= set(ids)
    assert {"results", "training", "matrices"} <= {target[1:] for target in used}


def test_names_from_outside_stay_text(make_run, metrics, analysis, log):
    metrics |= {"model": f"hub/{NASTY}", "task": NASTY, "recipe": NASTY, "finished": NASTY}
    metrics["settings"] |= {"data": NASTY, NASTY: [NASTY]}
    metrics["versions"] = {NASTY: NASTY}
    for entry in metrics["stages"].values():
        entry["per_class"] = {NASTY: {"precision": 0.5, "recall": 0.5, "f1": 0.5, "n": 9}}
    page = page_of(make_run(metrics, analysis, log))
    assert "script" not in page.tags
    assert f"hub/{NASTY}, fine-tuned on {NASTY}, keeps" in page.text
    assert f"--{NASTY.replace('_', '-')}" in page.words
    assert sum(NASTY in word for word in page.words) > 11


def test_a_dollar_sign_in_a_figure_is_no_mathematics():
    picture = svg("x", NASTY, 200, 100, lambda figure: figure.subplots().set_title(NASTY))
    page = Page(picture)
    assert NASTY in page.text
    assert ("svg", "aria-label", NASTY) in page.attributes
    assert "script" not in page.tags


def test_the_same_run_gives_the_same_bytes(whole_page, make_run, metrics, analysis, log):
    assert write_report(make_run(metrics, analysis, log)).read_text() == whole_page


def test_step_one_left_out(make_run, metrics, log):
    metrics = without_pruning(metrics, "fwsvd")
    rows = [{k: v for k, v in row.items() if k != "p"} for row in log if row["stage"] != "prune"]
    page = page_of(make_run(metrics, None, rows))
    assert "Inside the matrices" not in page.text
    assert "to preserve the weights that the loss is most sensitive to" in page.text
    assert "in place of the original matrices" in page.text
    assert "Pruned" not in page.text
    assert "Schedules" not in page.text


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"recipe": "lpaf-without-step-2"}, "to minimise the unweighted error (truncated SVD)"),
        ({"importance": "mask"}, "to preserve the weights that pruning kept"),
        ({"importance": "magnitude"}, "to preserve the largest weights"),
        ({"importance": "score"}, "with a high score, gradient times weight"),
        ({"criterion": "magnitude"}, "those closest to zero (magnitude pruning)"),
        ({"criterion": "sensitivity"}, "that the loss depends on least"),
        ({"criterion": "first-order"}, "training moves toward zero (movement pruning)"),
        ({"criterion": "magnitude"}, "pruning during training, and magnitude pruning"),
        ({"finetune_epochs": 0}, "as given, without further training"),
        ({"recipe": "lpaf-without-step-3"}, "in place of the original matrices"),
        (
            {"recipe": "lpaf"},
            "uses the matrix that was factorized instead of its factors with probability p",
        ),
        ({"recipe": "svd"}, "No training follows"),
        ({"recipe": "kfac-svd"}, "to change the loss least"),
    ],
    ids=str,
)
def test_the_text_follows_the_settings(metrics, analysis, chosen, words):
    metrics |= told(**chosen)
    metrics["settings"] |= chosen
    found = [*explanations(metrics).values(), str(matrices(metrics, analysis))]
    assert words in " ".join(found)


def test_logs_missing(make_run, metrics):
    page = page_of(make_run(metrics))
    assert "Training loss" not in page.text
    assert "Mixed-rank fine-tuning: in every training step" in page.text


def test_one_epoch_logged_once(make_run, metrics):
    rows = [
        {"stage": "finetune", "step": 12, "steps": 12, "loss": 0.61},
        {"stage": "finetune", "step": 12, "validation_accuracy": 0.7345},
        {"stage": "tune", "step": 12, "steps": 12, "loss": 0.5, "p": 0.25},
        {"stage": "tune", "step": 12, "validation_accuracy": 0.75},
    ]
    folder = make_run(metrics, None, rows)
    page = page_of(folder)
    assert "73.5" in page.text or "73.4" in page.text
    figure = (folder / "report.html").read_text().split("Training curves of")[1]
    # A line through a single point is invisible: loss and accuracy twice and p once are dots.
    dots = re.findall(r"<use [^>]*fill: (#\w+)", figure.split("</svg>")[0])
    assert [dots.count(colour) for colour in (BLUE, ORANGE)] == [4, 1]
    assert "chance p of" in page.text


@pytest.mark.parametrize("text", [None, "[1, 2]", "{"])
def test_unusable_metrics_are_named_and_the_old_page_stays(tmp_path, text):
    (tmp_path / "report.html").write_text("old")
    if text is not None:
        (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(LpafError, match=r"metrics\.json"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_a_full_disk_leaves_the_old_page(make_run, metrics, monkeypatch):
    folder = make_run(metrics)
    (folder / "report.html").write_text("old")
    write = Path.write_text

    def half(self, text, **options):
        write(self, text[:99], **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(LpafError, match="No space left"):
        write_report(folder)
    assert (folder / "report.html").read_text() == "old"


def test_attributes_are_escaped():
    page = Page(el("p", "x", title='"><script>'))
    assert page.attributes == [("p", "title", '"><script>')]


def test_analysis_that_is_no_object_is_named(make_run, metrics):
    folder = make_run(metrics)
    (folder / "analysis.json").write_text(json.dumps([1]))
    with pytest.raises(LpafError, match=r"analysis\.json"):
        write_report(folder)


def test_drawing_is_not_imported_before_it_is_needed():
    code = "import lpaf_jax.report, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

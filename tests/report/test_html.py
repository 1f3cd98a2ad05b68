import errno
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lpaf_jax.errors import LpafError
from lpaf_jax.report import write_report
from lpaf_jax.report.markup import el
from lpaf_jax.report.svg import BLUE, ORANGE

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
        "MiniLM fine-tuned on Rotten Tomatoes: compressible weights reduced to 50.0 % of their "
        "number (the whole model to 76.6 %), 98.6 % of the accuracy kept (80.1 % of 81.3 %). "
        "The file is 1.4× smaller (90.9 MB to 64.9 MB), and inference is 1.8× faster at batch 32 "
        "and 1.1× faster at batch 1."
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
        "9 min 13 s in all, at most 2.3 GB of memory",
        "mask_every 10",
        "without []",
        "jax 0.10.2",
        "recipe lpaf · seed 0 · finished 2026-01-02T03:04:05Z",
    ):
        assert words in whole.text


def test_draws_every_figure_and_says_what_it_shows(whole):
    labels = [value for tag, key, value in whole.attributes if (tag, key) == ("svg", "aria-label")]
    assert len(labels) == 3 + 3 + 2 * 3
    assert len(set(labels)) == len(labels)
    for words in ("step of pruning", "weights removed", "layer 6, ff in", "kept by first-order"):
        assert words in whole.text


def test_tells_the_mean_effective_ranks(whole, analysis, make_run, metrics):
    first, plain = (analysis["mean"][key]["effective_rank"] for key in ("first_order", "magnitude"))
    assert f"{first:.0f} after first-order pruning and {plain:.0f} after magnitude" in whole.text
    assert f"leaves {100 * (1 - first / plain):.0f} % fewer" in whole.text
    mean = {"first_order": {"effective_rank": 301.0}, "magnitude": {"effective_rank": 299.0}}
    worse = page_of(make_run(metrics, {"sparsity": 0.75, "mean": mean}))
    assert "did not leave fewer, against expectation" in worse.text


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
    metrics["settings"] = {NASTY: [NASTY]}
    metrics["versions"] = {NASTY: NASTY}
    metrics["seconds"] = {NASTY: 1.0}
    for entry in metrics["stages"].values():
        entry["per_class"] = {NASTY: {"precision": 0.5, "recall": 0.5, "f1": 0.5, "n": 9}}
    analysis["matrices"] = [analysis["matrices"][0] | {"name": NASTY}]
    analysis["spectra"] = [analysis["spectra"][0] | {"name": NASTY}]
    analysis["patterns"] = [analysis["patterns"][0] | {"name": NASTY}]
    rows = [row | {"stage": NASTY} for row in log[:40]]
    page = page_of(make_run(metrics, analysis, rows))
    assert "script" not in page.tags
    assert f"hub/{NASTY} fine-tuned on {NASTY}" in page.text
    drawn = [w for w in page.words if NASTY in w]
    assert f"step of {NASTY.lower()}" in page.text, "a dollar sign must not start mathematics"
    assert len(drawn) > 15
    spoken = [value for _, key, value in page.attributes if key == "aria-label"]
    assert f"Singular values of {NASTY}" in spoken


def test_the_same_run_gives_the_same_bytes(whole_page, make_run, metrics, analysis, log):
    assert write_report(make_run(metrics, analysis, log)).read_text() == whole_page


def test_step_one_left_out(make_run, metrics, log):
    del metrics["stages"]["pruned"]
    metrics["settings"]["without"] = ["prune", "mixing"]
    rows = [{k: v for k, v in row.items() if k != "p"} for row in log if row["stage"] != "prune"]
    page = page_of(make_run(metrics, None, rows))
    assert "No analysis of the matrices was made in this run because the pruning step" in page.text
    assert "The pruning step was left out." in page.text
    assert "that the gradients on the task mark as important" in page.text
    assert "without the old matrices beside them" in page.text
    assert "Pruned" not in page.text
    assert "Schedules" not in page.text


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"solver": "none"}, "every weight counting the same (plain truncated SVD)"),
        ({"importance": "none"}, "every weight counting the same (plain truncated SVD)"),
        ({"without": ["weighting"]}, "every weight counting the same (plain truncated SVD)"),
        ({"importance": "mask"}, "keeping best the weights that pruning left"),
        ({"importance": "magnitude"}, "keeping best the largest weights"),
        ({"importance": "score"}, "keeping best the weights that pruning found important"),
        ({"criterion": "magnitude"}, "those nearest zero (magnitude pruning)"),
        ({"criterion": "sensitivity"}, "that the loss depends on least"),
        ({"criterion": "first-order"}, "pushing toward zero anyway (movement pruning)"),
        ({"criterion": "magnitude"}, "what is called first-order below is that pruning"),
        ({"finetune_epochs": 0}, "as it was given, without further training"),
        ({"without": ["mixing"]}, "without the old matrices beside them"),
        ({"without": []}, "uses its old matrix instead with chance p"),
    ],
)
def test_the_text_follows_the_settings(make_run, metrics, setting, words):
    del metrics["encoder_params_ratio"]  # no figure to draw
    metrics["settings"] |= setting
    page = page_of(make_run(metrics, {"sparsity": 0.75}))
    assert words in page.text


def test_logs_missing(make_run, metrics, analysis):
    page = page_of(make_run(metrics, analysis))
    assert "No training log was found" in page.text
    assert "Training loss" not in page.text
    assert "Mixed-rank fine-tuning: in every training step" in page.text


def test_one_epoch_logged_once(make_run, metrics):
    rows = [
        {"stage": "finetune", "step": 12, "steps": 12, "loss": 0.61},
        {"stage": "finetune", "step": 12, "validation_accuracy": 0.7345},
        {"stage": "tune", "step": 12, "steps": 12, "loss": 0.5, "p": 0.25},
    ]
    folder = make_run(metrics, None, rows)
    page = page_of(folder)
    assert "73.5" in page.text or "73.4" in page.text
    figure = (folder / "report.html").read_text().split("Training curves of")[1]
    # A line through a single point is invisible: loss twice, accuracy once and p once are dots.
    dots = re.findall(r"<use [^>]*fill: (#\w+)", figure.split("</svg>")[0])
    assert [dots.count(colour) for colour in (BLUE, ORANGE)] == [3, 1]
    assert "chance p of" in page.text


@pytest.mark.parametrize("keep", [(), ("dense",), ("dense", "pruned"), ("final",)])
def test_partial_metrics_still_give_a_page(make_run, metrics, keep):
    stages = {key: metrics["stages"][key] for key in keep}
    page = page_of(make_run({"model": "minilm", "task": "imdb", "stages": stages}))
    assert "MiniLM fine-tuned on IMDb" in page.text
    assert ("the run is not finished" in page.text) == ("final" not in keep)
    assert "left out" not in page.text or "final" in keep


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


def test_figures_that_are_not_numbers_show_a_dash(make_run, metrics):
    metrics["bytes_on_disk"]["final"] = None
    metrics["latency_ms"]["final"]["32"]["median"] = float("nan")
    folder = make_run(metrics)
    assert "NaN" in (folder / "metrics.json").read_text()
    page = page_of(folder)
    assert "Final 80.1 % 78.2 to 82.0 % 50.0 % 76.6 % – 10.7 ms –" in page.text
    assert "nan" not in page.text.lower().split()


def test_analysis_that_is_no_object_is_named(make_run, metrics):
    folder = make_run(metrics)
    (folder / "analysis.json").write_text(json.dumps([1]))
    with pytest.raises(LpafError, match=r"analysis\.json"):
        write_report(folder)


def test_drawing_is_not_imported_before_it_is_needed():
    code = "import lpaf_jax.report, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

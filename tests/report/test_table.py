import io

from rich.console import Console

from lpaf_jax.report import result_table, result_text


def printed(metrics, width=80):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(result_table(metrics))
    return console.export_text()


def test_every_figure_stands_whole_within_80_columns(metrics):
    text = printed(metrics)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "Final 80.1 % 78.2 to 82.0 % 50.0 % 64.9 MB 10.7 ms 157 ms" in lines
    assert "Pruned 80.8 % 78.9 to 82.6 % 100.0 % – – –" in lines


def test_large_figures_fit_too(metrics, stage_of):
    for key in ("dense", "final"):
        metrics["bytes_on_disk"][key] = 438_000_000
        for batch in ("1", "32"):
            metrics["latency_ms"][key][batch]["median"] = 99_999.0
    metrics["stages"]["final"] = stage_of(1706)
    assert "…" not in printed(metrics)
    assert "438.0 MB" in printed(metrics)


def test_the_text_for_a_log_is_plain_on_any_terminal(metrics, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    text = result_text(metrics)
    assert all(character.isprintable() or character == "\n" for character in text)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "Final 80.1 % 78.2 to 82.0 % 50.0 % 64.9 MB 10.7 ms 157 ms" in lines
    assert any(line.startswith("MiniLM on Rotten Tomatoes, 50.0 %") for line in lines)
    assert lines[-1].startswith("Caution: ")

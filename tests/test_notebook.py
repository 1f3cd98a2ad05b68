"""The notebook among the examples, on a tiny model."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.tiny import Tiny, cut_back

NOTEBOOK = Path(__file__).parents[1] / "examples" / "compress.ipynb"
TEXTS = ["the film is a very good story .", "the plot is a very bad tale ."]


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: Any) -> str:
    return "".join(o.text for o in cell.outputs if o.get("name") == "stdout")


def test_no_output_is_stored() -> None:
    nbformat.validate(read())
    assert [(c.outputs, c.execution_count) for c in code(read())] == [([], None)] * len(
        code(read())
    )


@pytest.mark.slow
def test_it_runs(
    tiny: Tiny, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    # The last stage, which trains, is left to the notebook.
    chosen = tiny.chosen(cut_back(finished, tmp_path / "run", "final"))
    given = [str(chosen.pop(name)) for name in ("model", "task", "out")]
    notebook = read()
    (place,) = [c for c in code(notebook) if "parameters" in c.metadata.get("tags", ())]
    place.source = f"model, task, out = {given}\nchosen, texts = {chosen}, {TEXTS}"
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    install, _, _, table, picture, asked, in_torch = code(notebook)
    assert install.outputs == []  # what can be imported is not installed again
    assert "Final" in str(table.outputs)
    assert any("image/png" in output.get("data", {}) for output in picture.outputs)
    answers = printed(asked).splitlines()
    assert [line.partition(" -> ")[0] for line in answers] == TEXTS
    assert {line.partition(" -> ")[2] for line in answers} <= {"positive", "negative"}
    pytest.importorskip("torch")
    assert printed(in_torch).splitlines() == answers

"""The log of cases names tests that are there."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROWS = [
    line
    for line in (TESTS / "CASES.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| kind ")
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_each_case_has_its_tests(row: str) -> None:
    kind, right, named = (cell.strip() for cell in row.strip("| ").split(" | "))
    assert kind
    assert right
    text = ""
    for name in re.findall(r"`([\w./]+?)(?:::(\w+))?`", named):
        file, test = name if name[0].endswith(".py") else ("", name[0])
        text = (TESTS / file).read_text(encoding="utf-8") if file else text
        assert not test or f"def {test}(" in text, f"no {test} in {file or 'the same file'}"

"""A terminal that remembers what a person would see on it."""

import io
import re
import sys

import pytest

_PARTS = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class Terminal(io.StringIO):
    """What is written to it, and what stands on it then."""

    @classmethod
    def put_in(cls, monkeypatch: pytest.MonkeyPatch, **environment: str) -> "Terminal":
        """One in the place of standard error, 100 columns wide unless `environment` says else."""
        found = cls()
        monkeypatch.setattr(sys, "stderr", found)
        for name, value in ({"TERM": "xterm", "COLUMNS": "100"} | environment).items():
            monkeypatch.setenv(name, value)
        return found

    def isatty(self) -> bool:
        return True

    def lines(self) -> list[str]:
        """The lines that stand on it, without colours."""
        return screen(self.getvalue())

    @property
    def cursor_shown(self) -> bool:
        return cursor_shown(self.getvalue())


def screen(written: str) -> list[str]:
    """The lines that a terminal shows of what was written to it, empty last ones left out."""
    lines, row, column = [""], 0, 0
    for values, command, moved, text in _PARTS.findall(written):
        if moved == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif moved == "\r":
            column = 0
        elif text:
            line = lines[row].ljust(column)
            lines[row] = line[:column] + text + line[column + len(text) :]
            column += len(text)
        elif command == "A":
            row -= int(values or 1)
        elif command == "K":
            assert values == "2"
            lines[row] = ""
        else:
            assert command in "mlh", f"{command} is not known here"
    return "\n".join(line.rstrip() for line in lines).rstrip("\n").splitlines()


def cursor_shown(written: str) -> bool:
    """Whether the cursor is to be seen after what was written."""
    return written.rfind("\x1b[?25l") <= written.rfind("\x1b[?25h")

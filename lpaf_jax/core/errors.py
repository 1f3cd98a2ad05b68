"""The one error a person is meant to read, and the end that a signal asks for."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class LpafError(ValueError):
    """A mistake in what was asked for: names the thing and the mend, in one line.

    The command line prints it without a traceback and exits with status 2; anything else that is
    raised is a defect of the program and keeps its traceback.
    """


class SettingError(LpafError):
    """A value of one or more settings that cannot serve.

    Reads `{names} {rest}`; the command line puts its flags in place of the names.
    """

    def __init__(self, names: tuple[str, ...], rest: str):
        super().__init__(f"{' and '.join(names)} {rest}")
        self.names, self.rest = names, rest


@contextmanager
def mended_by(remedy: str) -> Iterator[None]:
    """Add to what is wrong with a file what to do about it."""
    try:
        yield
    except LpafError as error:
        raise LpafError(f"{error}; {remedy}") from None


class Terminated(SystemExit):
    """SIGTERM came. Uncaught, it ends the process with the status a shell gives to that, 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)

"""The one error a person is meant to read, and the end that a signal asks for."""

import signal


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


class Terminated(SystemExit):
    """SIGTERM came. Uncaught, it ends the process with the status a shell gives to that, 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)

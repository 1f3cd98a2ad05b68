"""The one error a person is meant to read."""


class LpafError(ValueError):
    """A mistake in what was asked for: names the thing and the mend, in one line.

    The command line prints it without a traceback and exits with status 2; anything else that is
    raised is a defect of the program and keeps its traceback.
    """

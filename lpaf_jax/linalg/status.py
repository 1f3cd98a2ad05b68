"""How an iterative solve ended, in words."""

from enum import IntEnum


class Status(IntEnum):
    """How an iterative solve ended; `words` says it in a sentence.

    An `info.status` is an int32 array, as everything under `jit` is; `Status(int(info.status))` is
    the member.
    """

    CONVERGED = 0
    MAX_SWEEPS = 1
    FAILED = 2

    @property
    def words(self) -> str:
        """Such as "converged"."""
        return _WORDS[self]


_WORDS = {
    Status.CONVERGED: "converged",
    Status.MAX_SWEEPS: "stopped at max_sweeps while the objective was still falling",
    Status.FAILED: (
        "failed: the objective was not finite at the start or became so; "
        "the factors are the last good ones"
    ),
}

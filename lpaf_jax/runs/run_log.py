"""The log of a run: what goes into it, and that its end is told there."""

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from lpaf_jax.core.errors import LpafError

_LOG = logging.getLogger("lpaf_jax")
# Colours and the like, and every character that moves the cursor but a new line and a tab.
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@contextmanager
def logging_to(log: TextIO) -> Iterator[None]:
    """Send the package's messages, and what libraries complain of, to the log, not the screen."""
    handler = _Handler(log)
    handler.setFormatter(_Plain("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level, unraisable = _LOG.level, sys.unraisablehook

    def log_unraisable(event: Any) -> None:
        """What is raised where nobody can catch it: orbax leaves such where a write fails."""
        if not issubclass(event.exc_type, Exception):  # a signal came, which is no complaint
            unraisable(event)
            return
        logging.getLogger("py.unraisable").warning(
            "ignored in %r: %s: %s", event.object, event.exc_type.__name__, event.exc_value
        )

    root.addHandler(handler)
    sys.unraisablehook = log_unraisable
    _LOG.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        sys.unraisablehook = unraisable
        _LOG.setLevel(level)
        root.removeHandler(handler)


class _Handler(logging.StreamHandler[TextIO]):
    def handleError(self, record: logging.LogRecord) -> None:
        """A disk too full for the log is told of by whatever work it stops."""


class _Plain(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return _CONTROL.sub("", super().format(record))


@contextmanager
def closed(log: TextIO) -> Iterator[None]:
    """Close the log at the end, on a full disk too."""
    try:
        yield
    finally:
        with suppress(OSError):  # on a full disk the last lines cannot be written
            log.close()


@contextmanager
def end_logged() -> Iterator[None]:
    """Log what ends a run before its time."""
    try:
        yield
    except LpafError as error:
        _LOG.error("%s", error)
        raise
    except Exception:
        _LOG.exception("the run ended with an internal error")
        raise
    except BaseException as stop:
        _LOG.warning("stopped: %s", type(stop).__name__.lstrip("_"))
        raise

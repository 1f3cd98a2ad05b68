"""The option that several subcommands have."""

from typing import Annotated

from tyro.conf import arg

StageName = Annotated[str, arg(metavar="STAGE")]
"""Stage of a run, as its folder is named: dense, final, or one in between."""

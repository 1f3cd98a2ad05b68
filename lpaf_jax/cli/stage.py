"""The option that several subcommands have."""

from typing import Annotated

from tyro.conf import arg

StageName = Annotated[str, arg(metavar="STAGE")]
"""As the folder of the run calls it: dense, final, and what the recipe leaves in between."""

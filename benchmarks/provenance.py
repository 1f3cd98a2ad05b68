"""What made a result: the command as it was given, and the commit that was measured."""

import shlex
import subprocess
import sys
from pathlib import Path


def provenance() -> dict[str, str]:
    """`command` and `commit`, as every result carries them."""
    script = f"benchmarks/{Path(sys.argv[0]).name}"
    return {"command": shlex.join(["python", script, *sys.argv[1:]]), "commit": commit()}


def commit() -> str:
    """What is measured; with a + if it is not what was committed."""
    told = ["git", "describe", "--always", "--dirty=+", "--abbrev=7"]
    here = Path(__file__).parent
    done = subprocess.run(told, capture_output=True, text=True, check=False, cwd=here)
    return done.stdout.strip() or "unknown"

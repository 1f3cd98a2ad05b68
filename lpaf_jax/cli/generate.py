"""`lpaf generate`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from lpaf_jax.cli.stage import StageName
from lpaf_jax.core.ranges import demand, whole


@dataclass(frozen=True)
class Generate:
    """Continue a text with a language model; prints only the continuation."""

    dir: Positional[Path]
    """Folder of a run or of a model, a .gguf file, or `smollm2`."""
    prompt: Annotated[str, arg(metavar="TEXT")]
    """Text to continue."""
    tokens: int = 64
    """Maximum number of new tokens; the model may stop earlier."""
    temperature: float = 0.0
    """Sampling temperature; 0 always takes the most likely token."""
    top_p: float = 1.0
    """Nucleus sampling: sample from the most likely tokens that together have this probability."""
    seed: int = 0
    """Random seed for sampling."""
    stage: StageName = "final"
    """Stage whose model is used, if DIR is a run."""

    def run(self) -> None:
        """Continue and print."""
        from lpaf_jax.checkpoints import find_model
        from lpaf_jax.evaluation.generate import Sampling, generate

        demand(self, "tokens", whole(1), "a whole number, at least 1")
        demand(self, "temperature", lambda x: 0 <= x < float("inf"), "finite and at least 0")
        demand(self, "top_p", lambda x: 0 < x <= 1, "in (0, 1]")
        sampling = Sampling(self.temperature, self.top_p, self.seed)
        folder = find_model(self.dir, self.stage)
        # Half a minute and more where each block has a width of its own.
        print(f"reading {folder} and compiling it", file=sys.stderr, flush=True)
        told = generate(folder, self.prompt, tokens=self.tokens, sampling=sampling)
        print(told.text)
        print(
            f"{told.prompt} prompt tokens read in {told.reading:.2f} s, {told.tokens} new tokens "
            f"in {told.writing:.2f} s (compilation included)",
            file=sys.stderr,
        )

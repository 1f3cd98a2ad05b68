"""What pages and cards say of a factorization, and of the channels that went with it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from lpaf_jax.factorization import FORMS
from lpaf_jax.importance import IMPORTANCES
from lpaf_jax.ranks import RANK_RULES
from lpaf_jax.solvers import SOLVERS
from lpaf_jax.stages.base import Description

if TYPE_CHECKING:
    from lpaf_jax.stages.factorize import Factorize


def describe(stage: "Factorize", found: Mapping[str, Any]) -> Description:
    """See `Stage.describe`."""
    channels, table = _channels(stage), _table(stage)
    done, stored = _matrices(stage, sorted(found["ranks"].values()))
    name, phase, method = _names(stage)
    after = (
        "Nothing has been retrained yet, so the model is usually worse here than after the next "
        "stage."
        if found["retrained"]
        else "No training follows."
    )
    rest = "Nothing else is" if table else "Embeddings, biases, norms and the head are not"
    return Description(
        name,
        phase,
        f"{channels.done}{done}{table}{after}",
        f"made smaller by {method}: {channels.stored}{stored}{table}{rest} compressed.",
    )


def _names(stage: "Factorize") -> tuple[str, str, str]:
    """What the model is called, what is being done to it, and what that was."""
    method = SOLVERS[stage.solver].form.method
    if not RANK_RULES[stage.ranks].factorizes:
        return "Narrowed", "Dropping channels", "structured pruning"
    if stage.channels == "none":
        return "Factorized", "Factorizing", method
    return "Compressed", "Compressing", f"structured pruning and {method}"


class _Said(NamedTuple):
    """Sentences on what was done, and on what is stored."""

    done: str
    stored: str


def _channels(stage: "Factorize") -> _Said:
    if stage.channels == "none":
        return _Said("", "")
    which = "Feed-forward layers"
    if stage.channels == "all":
        which += " and attention values"
    how = (
        "of the smallest norms, except the smallest hundredth"
        if stage.channels_by == "norms"
        else "that raise the loss least; the remaining channels are adjusted to compensate"
    )
    return _Said(f"{which} lose the channels {how}. ", f"{which} have fewer channels. ")


def _matrices(stage: "Factorize", ranks: list[int]) -> _Said:
    """The same of the matrices that become factors, whose ranks are given, smallest first."""
    rule, solver = RANK_RULES[stage.ranks], SOLVERS[stage.solver]
    if not rule.factorizes:
        return _Said("Other matrices are unchanged. ", "")
    if not ranks and stage.channels == "none":
        return _Said("The compressible matrices are unchanged. ", "")
    alike, form, size = stage.ranks == "uniform", solver.form, ""
    if ranks:
        size = f", {form.size} = {ranks[0]}"
        if ranks[0] < ranks[-1]:
            size = f", {form.size} from {ranks[0]} to {ranks[-1]}"
    which = "All compressible matrices" if alike else "Compressible matrices"
    names = "query, key, value, attention-output and feed-forward matrices"
    if stage.channels != "none":
        which = "The other compressible matrices"
        names = "The other attention matrices" if stage.channels == "all" else "Attention matrices"
    whole = "" if alike else " Matrices that need their full rank stay dense."
    if rule.whole:
        whole, names = f" {rule.whole}", rule.cut
    chosen = f"chosen {IMPORTANCES[stage.importance].summary}"
    return _Said(
        f"{which} (m × n) are replaced by {form.text}{size}, {chosen} ({solver.summary}).{whole} ",
        f"{names} (m × n) are stored as {form.text}{size}, {chosen}.{whole} ",
    )


def _table(stage: "Factorize") -> str:
    """What is said of the token embeddings, in a sentence; nothing where they are unchanged."""
    if stage.embeddings is None:
        return ""
    width = f"E = {stage.embeddings:g}"
    if stage.embeddings < 1:
        width = f"at most {100 * stage.embeddings:g} % of their parameters"
    by_counts = FORMS[stage.embeddings_as].by_counts
    frequent = ", most accurate for the most frequent tokens" if by_counts else ""
    return (
        f"The token embeddings (V × H) are replaced by {FORMS[stage.embeddings_as].text}, "
        f"{width}{frequent}; a tied head uses the same factors. "
    )

from typing import Any

import pytest

from lpaf_jax.factors import KINDS, register_kind
from lpaf_jax.importance import IMPORTANCES, register_importance
from lpaf_jax.ranks import RANK_RULES, register_rank_rule
from lpaf_jax.solvers import SOLVERS, register_solver


def mine(*_: Any) -> None:
    """What a stranger would register first: the function itself."""


@pytest.mark.parametrize(
    ("register", "choices", "of"),
    [
        (register_solver, SOLVERS, "solver mine: register an instance of Solver"),
        (register_rank_rule, RANK_RULES, "rank rule mine: register an instance of RankRule"),
        (register_importance, IMPORTANCES, "importance mine: register an instance of Importance"),
        (register_kind, KINDS, "kind of factors mine: register an instance of FactorKind"),
    ],
)
def test_a_function_is_no_choice(register: Any, choices: Any, of: str) -> None:
    before = list(choices)
    with pytest.raises(TypeError, match=of):
        register(mine)
    assert list(choices) == before

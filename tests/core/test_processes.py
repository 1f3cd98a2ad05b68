"""How a process learns that it is one of several."""

import pytest

from lpaf_jax.core.errors import LpafError
from lpaf_jax.core.processes import join


@pytest.mark.parametrize("name", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_a_variable_that_is_no_number_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.setenv(name, "x")
    with pytest.raises(LpafError, match=f"--distributed: {name} is 'x', but must be a whole"):
        join()

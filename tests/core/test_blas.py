from threadpoolctl import threadpool_info

from lpaf_jax.core.machine import one_blas_thread


def test_openblas_has_one_thread_inside_and_what_it_had_outside() -> None:
    import scipy.linalg  # noqa: F401  it is loaded with this

    def threads() -> list[int]:
        return [each["num_threads"] for each in threadpool_info() if each["user_api"] == "blas"]

    before = threads()
    assert before
    with one_blas_thread():
        assert threads() == [1] * len(before)
    assert threads() == before

"""Five hundred optimisation steps through each primitive across ties; `.ci/long` takes 10,000."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import longrun

pytestmark = pytest.mark.x32


@pytest.mark.parametrize("name", longrun.RUNS)
def test_arrives_with_one_trace_and_finite_throughout(name):
    outcome = longrun.follow(longrun.RUNS[name], 500)
    # What other tests of this process free or keep is no affair of this one.
    assert not longrun.faults(outcome._replace(memory=0))
    assert outcome.distance < longrun.BAR * longrun.ARRIVED


def test_faults_are_noticed():
    def through_lapack(X):
        U, S, Vh = jnp.linalg.svd(X, full_matrices=False)
        return longrun.rebuilt((U, S, Vh))

    outcome = longrun.follow(longrun.Run(through_lapack), 500)
    assert longrun.faults(outcome) == ["a number that is not finite"]
    leaking = outcome._replace(finite=True, traces=2, arrays=1, memory=100 << 20)
    assert longrun.faults(leaking) == ["2 traces", "1 arrays more", "100 MB more"]


def test_the_targets_have_ties_and_zeros():
    last = jnp.int32(10_000)
    drifting = np.stack([longrun.values(jnp.int32(t), last) for t in range(1, 400)])
    order = np.argsort(drifting, axis=1)
    assert len(np.unique(order[:, -3:], axis=0)) > 3
    assert np.min(drifting[:, :3]) - np.max(drifting[:, 3:]) >= 0.5
    assert longrun.values(jnp.int32(100), last).tolist() == [2, 2, 2, 0.25, 0, 0]
    assert longrun.values(last, last).tolist() == [2, 2, 1, 0.25, 0, 0]
    assert jax.numpy.linalg.matrix_rank(longrun.target(longrun.SMALL, last, last)) == 4

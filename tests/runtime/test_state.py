import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from segjax.errors import WeightsError
from segjax.runtime.state import TrainState


def variables(value=1.0):
    return {"params": {"conv": {"kernel": jnp.full((3, 2), value)}}, "batch_stats": {"bn": {"mean": jnp.full((2,), value)}}}


def state(ema):
    return TrainState.create(jax.random.key(0), variables(), optax.sgd(0.1, momentum=0.9), ema=ema)


@pytest.mark.parametrize("ema", [False, True])
def test_create_and_graft(ema):
    grafted = state(ema).with_variables(jax.tree.map(lambda x: np.asarray(x, np.float16), variables(2.0)))
    for tree in (grafted.variables, grafted.ema_variables):
        for leaf in jax.tree.leaves(tree):
            assert leaf.dtype == jnp.float32 and (np.asarray(leaf) == 2).all()
    assert (grafted.ema_params is not None) == ema
    assert int(grafted.step) == 0 and jax.tree.leaves(grafted.opt_state)[0].shape == (3, 2)


def test_graft_without_statistics_keeps_them():
    grafted = state(True).with_variables({"params": variables(3.0)["params"]})
    assert float(grafted.params["conv"]["kernel"][0, 0]) == 3 and float(grafted.batch_stats["bn"]["mean"][0]) == 1


def test_graft_names_what_does_not_fit():
    wrong = {"params": {"conv": {"kernel": np.ones((2, 3))}, "head": np.ones(1)}}
    with pytest.raises(WeightsError, match=r"unexpected 1: head; wrong shape 1: conv/kernel \(2, 3\) for \(3, 2\)"):
        state(False).with_variables(wrong)
    with pytest.raises(WeightsError, match="missing 1: conv/kernel"):
        state(False).with_variables({"params": {}})


def test_step_key_is_a_function_of_the_step():
    one = state(False)
    two = one.replace(step=jnp.int32(1))
    draw = lambda s: float(jax.random.uniform(s.step_key()))
    assert draw(one) == draw(state(True)) != draw(two)

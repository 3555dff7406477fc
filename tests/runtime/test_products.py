"""The least work of a function, whole and by module."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from segjax.runtime import jaxprs, modules, products


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return jnp.tanh(nn.Dense(8, use_bias=False, name="dense")(x)), None


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, use_bias=False, name="first")(x)
        x, _ = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)(name="rest")(x, None)
        return nn.Dense(2, use_bias=False, name="last")(x)


def test_work_is_operations_and_bytes_of_products_and_ends():
    x, w = jnp.zeros((4, 6)), jnp.zeros((6, 10), jnp.bfloat16)
    closed = jax.make_jaxpr(lambda x, w: jnp.tanh(x.astype(jnp.bfloat16) @ w).astype(jnp.float32))(x, w)
    inside, ends = 2 * (4 * 6 + 6 * 10 + 4 * 10), 4 * (4 * 6) + 2 * (6 * 10) + 4 * (4 * 10)
    assert products.work(closed) == products.Work(2 * 4 * 6 * 10, inside + ends)
    loop = jax.make_jaxpr(lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, length=5)[0])(jnp.zeros((4, 4)))
    assert products.work(loop) == products.Work(5 * 2 * 4**3, 5 * 3 * 64 + 2 * 64)


def test_what_nothing_reads_does_not_count():
    """The primal of a vjp whose pullback alone is used, at the top and in the branches of a conditional."""
    x, w = jnp.zeros((4, 6)), jnp.zeros((6, 10))

    def pullback(x, w, dy):
        return jax.vjp(lambda x, w: x @ w, x, w)[1](dy)

    both = 2 * (2.0 * 4 * 6 * 10)
    dy = jnp.zeros((4, 10))
    assert jaxprs.count_flops(jax.make_jaxpr(pullback)(x, w, dy).jaxpr) == both
    chosen = lambda x, w, dy: jax.lax.platform_dependent(x, w, dy, cpu=pullback, default=lambda x, w, dy: (dy @ w.T, x.T @ dy))
    assert jaxprs.count_flops(jax.make_jaxpr(chosen)(x, w, dy).jaxpr) == both
    one = lambda x, w, dy: jax.jit(pullback)(x, w, dy)[0]
    assert jaxprs.count_flops(jax.make_jaxpr(one)(x, w, dy).jaxpr) == both / 2


def test_roofline_is_the_slower_of_the_two():
    work = products.Work(1e9, 1e6)
    assert work.seconds(1e9, 1e9) == pytest.approx(1.0) and work.seconds(1e15, 1e6) == pytest.approx(1.0)


def test_work_by_module_in_both_directions():
    x = jnp.zeros((5, 4))
    params = jax.eval_shape(Net().init, jax.random.key(0), x)
    closed = jax.make_jaxpr(jax.grad(lambda params: jnp.square(Net().apply(params, x)).sum()))(params)
    shares = {path.removeprefix("Net/"): share for path, share in modules.by_module(closed).items()}
    product = lambda rows, i, o: 2.0 * rows * i * o
    assert shares["first"].forward == product(5, 4, 8) and shares["first"].backward == product(5, 4, 8)  # no gradient of the image
    assert shares["rest/dense"].forward == 3 * product(5, 8, 8) and shares["rest/dense"].backward == 2 * 3 * product(5, 8, 8)
    assert shares["last"].backward == 2 * product(5, 8, 2)
    assert shares["last"].bytes == 3 * 4 * (5 * 8 + 8 * 2 + 5 * 2)
    assert sum(share.forward + share.backward for share in shares.values()) == products.work(closed).flops

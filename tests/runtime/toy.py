"""A method of four lines with everything that a resume must bring back, and a program that trains it: the loop's test bench."""

import argparse
import hashlib
import itertools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from segjax.runtime.optim import ema_update, make_optimizer
from segjax.runtime.state import TrainState
from segjax.typing import Method


def make(size=16, optimizer=None, poison=-1) -> Method:
    """Linear regression with input noise, Adam and a teacher. `poison`: the step whose loss is NaN."""
    optimizer = optimizer or make_optimizer(name="adam", lr=0.1, total_steps=100)

    def init(key, batch):
        draw, key = jax.random.split(key)
        variables = {"params": {"w": jax.random.normal(draw, (3, size)), "v": jnp.zeros((size, 1))}, "batch_stats": {"mean": jnp.zeros(3)}}
        return TrainState.create(key, variables, optimizer, ema=True)

    def step(state, frozen, batch):
        x = batch["source_image"].astype(jnp.float32) / 255
        noise = 0.1 * jax.random.normal(state.step_key(), x.shape)

        def loss(params):
            return jnp.mean(((x + noise) @ params["w"] @ params["v"] - x.sum(-1, keepdims=True)) ** 2)

        value, gradient = jax.value_and_grad(loss)(state.params)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        state = state.replace(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            batch_stats={"mean": 0.9 * state.batch_stats["mean"] + 0.1 * x.mean(0)},
            ema_params=ema_update(state.ema_params, params, state.step, 0.99),
        )
        return state, {"loss/mse": jnp.where(state.step == poison, jnp.nan, value), "noise": noise.mean()}

    return Method(init, step, lambda state, frozen, image: image)


def batches(start, rows=16, pause=0.0):
    for index in itertools.count(start):
        time.sleep(pause)
        yield {"source_image": np.random.default_rng((3, index)).integers(0, 256, (rows, 3), np.uint8)}


def digest(state) -> str:
    """sha256 of every bit of a state."""
    bits = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return hashlib.sha256(b"".join(np.asarray(bits(leaf)).tobytes() for leaf in jax.tree.leaves(state))).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("workdir")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds a batch takes")
    parser.add_argument("--slow-save", type=float, default=0.0, help="seconds between a save's data and its commit")
    args = parser.parse_args()
    sys.modules["torch"] = None  # tensorboardX imports it where it is installed, for seconds
    from segjax.errors import SegjaxError
    from segjax.runtime import checkpoint, loop, mesh

    if args.slow_save:
        commit = checkpoint.Checkpoints._commit
        checkpoint.Checkpoints._commit = lambda *a: (time.sleep(args.slow_save), commit(*a))
    try:
        state = loop.train(
            make(),
            batches=lambda start: batches(start, pause=args.pause),
            steps=args.steps,
            workdir=args.workdir,
            mesh=mesh.make_mesh(),
            checkpoint_every=4,
            log_every=1,
        )
    except SegjaxError as error:
        print(error, flush=True)
        raise SystemExit(error.code) from None
    print("digest", digest(state), flush=True)


if __name__ == "__main__":
    main()

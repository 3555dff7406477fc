"""Optimizers as PyTorch defines them, learning-rate schedules of the field, the teacher's moving average, gradient accumulation."""

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from segjax.errors import ConfigError
from segjax.runtime.state import path_name
from segjax.typing import Array

Schedule = Callable[[ArrayLike], Array]


def make_schedule(
    lr: float,
    *,
    schedule: str = "poly",
    total_steps: int = 0,
    power: float = 0.9,
    min_lr: float = 0.0,
    warmup_steps: int = 0,
    warmup_ratio: float = 0.0,
    warmup: str = "scaled",
) -> Schedule:
    """Learning rate of step i = 0, 1, ... (N = total_steps, W = warmup_steps, r = warmup_ratio).

    poly: (lr - min)(1 - i/N)^power + min (DeepLab, FDA, ADVENT, DACS). cosine: min + (lr - min)(1 + cos(pi i/N))/2. constant: lr.
    warmup "scaled" (mmcv, DAFormer): the curve above times 1 - (1 - i/W)(1 - r) while i < W.
    warmup "delayed" (DiGA): lr (r + (1 - r) i/W) while i < W, then the curve at i - W; N does not shrink.
    i is held at N. 1 - i/N is computed as (N - i)/N so that the last steps keep their digits in float32.
    """
    if lr < 0:
        raise ConfigError(f"optimizer.lr={lr}: expected 0 or more")
    if schedule not in ("poly", "constant", "cosine"):
        raise ConfigError(f"optimizer.schedule={schedule!r}: expected poly, constant or cosine")
    if warmup not in ("scaled", "delayed"):
        raise ConfigError(f"optimizer.warmup={warmup!r}: expected scaled (mmcv) or delayed (DiGA)")
    if schedule != "constant" and total_steps < 1:
        raise ConfigError(f"optimizer.total_steps={total_steps}: a {schedule} schedule needs the number of steps")

    def curve(step: Array) -> Array:
        if schedule == "constant":
            return jnp.full((), lr, jnp.float32)
        left = (total_steps - jnp.clip(step, 0, total_steps)).astype(jnp.float32) / total_steps
        shape = left**power if schedule == "poly" else 0.5 * (1 - jnp.cos(jnp.pi * left))
        return (lr - min_lr) * shape + min_lr

    def rate(step: ArrayLike) -> Array:
        step = jnp.asarray(step, jnp.int32)
        if not warmup_steps:
            return curve(step)
        rise = warmup_ratio + (1 - warmup_ratio) * step.astype(jnp.float32) / warmup_steps
        warm, after = (curve(step) * rise, curve(step)) if warmup == "scaled" else (lr * rise, curve(step - warmup_steps))
        return jnp.where(step < warmup_steps, warm, after)

    return rate


def make_optimizer(
    *,
    name: str = "sgd",
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    no_decay: Sequence[str] = (),
    multipliers: Sequence[tuple[str, float]] = (),
    clip_norm: float | None = None,
    **schedule,
) -> optax.GradientTransformation:
    """torch.optim's SGD, Adam and AdamW, update for update, with a schedule (`make_schedule` takes the other keywords).

    sgd and adam add `weight_decay * p` to the gradient before momentum or moments; adamw decays apart from them, times the rate.
    `no_decay`: regexes of parameters without decay. `multipliers`: (regex, factor) of the learning rate, the first match wins;
    both are searched in paths like `params/head/kernel`, and a pattern that matches nothing is a ConfigError at init.
    `clip_norm`: the global gradient norm, clipped first (torch adds 1e-6 to the norm, this does not).
    """
    rate = make_schedule(lr, **schedule)
    decays = lambda params: _by_path(params, [(pattern, False) for pattern in no_decay], True)
    decay = optax.add_decayed_weights(weight_decay, mask=decays) if weight_decay else optax.identity()
    if name == "sgd":
        rule = [decay, optax.trace(decay=momentum, nesterov=nesterov) if momentum else optax.identity()]
    elif name == "adam":
        rule = [decay, optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=eps)]
    elif name == "adamw":
        rule = [optax.scale_by_adam(b1=betas[0], b2=betas[1], eps=eps), decay]
    else:
        raise ConfigError(f"optimizer.name={name!r}: expected sgd, adam or adamw")
    clip = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    return optax.chain(
        _check_patterns((*no_decay, *(p for p, _ in multipliers))),
        *clip,
        *rule,
        optax.scale_by_learning_rate(rate),
        _scale_by_path(multipliers),
    )


def _by_path(params, table: Sequence[tuple], default):
    def look_up(path, _):
        name = f"params/{path_name(path)}"
        return next((value for pattern, value in table if re.search(pattern, name)), default)

    return jax.tree_util.tree_map_with_path(look_up, params)


def _check_patterns(patterns: Sequence[str]) -> optax.GradientTransformation:
    def init(params):
        names = [f"params/{path_name(path)}" for path, _ in jax.tree_util.tree_leaves_with_path(params)]
        for pattern in patterns:
            if not any(re.search(pattern, name) for name in names):
                raise ConfigError(f"optimizer pattern {pattern!r} matches no parameter; the paths look like {', '.join(names[:3])}")
        return optax.EmptyState()

    return optax.GradientTransformation(init, lambda updates, state, params=None: (updates, state))


def _scale_by_path(multipliers: Sequence[tuple[str, float]]) -> optax.GradientTransformation:
    def update(updates, state, params=None):
        return jax.tree.map(lambda u, f: u * f, updates, _by_path(updates, multipliers, 1.0)), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update) if multipliers else optax.identity()


def ema_update(old, new, step: Array | int, decay: float):
    """Teacher after step t = 0, 1, ...: a * old + (1 - a) * new with a = min(1 - 1/(t + 1), decay), so t = 0 copies the student.

    Leaves that are not floating point are taken from `new`. Source: DACS/DAFormer `_update_ema`, DiGA `update_teacher_params`.
    """
    return _blended(old, new, jnp.minimum(1 - 1 / (jnp.asarray(step, jnp.float32) + 1), decay))


def ema_update_every(old, new, step: Array | int, decay: float, every: int):
    """Teacher before step t = 0, 1, ...: decay * old + (1 - decay) * new where `every` divides t, a copy of the student at 0, else old.

    Source: yasserben/CLOUDS clouds/clouds.py (every 100 iterations, .999). Leaves that are not floating point are taken from `new`.
    """
    step = jnp.asarray(step)
    return _blended(old, new, jnp.where(step == 0, 0.0, jnp.where(step % every == 0, jnp.float32(decay), 1.0)))


def _blended(old, new, alpha: Array):
    rest = 1 - alpha
    blend = lambda o, n: (alpha * o + rest * n).astype(o.dtype) if jnp.issubdtype(o.dtype, jnp.floating) else n
    return jax.tree.map(blend, old, new)


def accumulated_grad(loss_fn: Callable, params, batch: dict[str, Array], steps: int = 1, *, carry=None):
    """Gradient of a loss of global means, computed over `steps` microbatches with the memory of one.

    loss_fn: (params, microbatch, carry) -> (terms, carry); terms: {"name": (sum, weight)}, float32 scalars. The loss is the sum
    over terms of total sum / total weight (0 where the weight is 0), totals over the whole batch: exactly the full batch's loss
    and gradient, however the ignored pixels fall. Weights may depend on the batch, not on the carry, and get no gradient.
    carry (batch statistics, say) passes from microbatch to microbatch. BatchNorm normalises each microbatch by its own
    statistics, so a network that has it in training mode sees smaller batches: that part is not the full batch's.
    Microbatch j holds the rows j, j + steps, ...: each device keeps its own rows. Raises ConfigError unless steps divides them.
    Returns (gradient, {"name": mean}, carry).
    """
    rows = sorted({leaf.shape[0] for leaf in jax.tree.leaves(batch)})
    if steps < 1 or any(count % steps for count in rows):
        raise ConfigError(f"accumulate={steps} does not divide batches of {rows} rows: choose a divisor")

    def weights(part):
        return {name: jnp.asarray(w, jnp.float32) for name, (_, w) in loss_fn(params, part, carry)[0].items()}

    def share(params, part, carry, total=None):
        terms, carry = loss_fn(params, part, carry)
        total = jax.lax.stop_gradient({name: w for name, (_, w) in terms.items()} if total is None else total)
        means = {name: jnp.where(total[name] > 0, s / jnp.where(total[name] > 0, total[name], 1), 0) for name, (s, _) in terms.items()}
        return sum(means.values()), (means, carry)

    def body(running, part):
        gradient, means, carry = running
        more, (parts, carry) = jax.grad(share, has_aux=True)(params, part, carry, total)
        return (jax.tree.map(jnp.add, gradient, more), jax.tree.map(jnp.add, means, parts), carry), None

    if steps == 1:  # no loop: XLA:CPU is many times slower at convolution gradients inside one
        gradient, (means, carry) = jax.grad(share, has_aux=True)(params, batch, carry)
        return gradient, means, carry
    micro = jax.tree.map(lambda x: x.reshape(x.shape[0] // steps, steps, *x.shape[1:]).swapaxes(0, 1), batch)
    # A weight that depends on labels alone costs nothing here: XLA removes the unused forward pass from the loop.
    total = jax.tree.map(lambda w: w.sum(0), jax.lax.map(weights, micro))
    zeros = (jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, total), carry)
    return jax.lax.scan(body, zeros, micro)[0]

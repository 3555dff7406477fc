"""Whole training steps as workloads: the compiled step of a method over a network, random images and labels. Makes none by itself."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from segjax.methods import source_only
from segjax.nets.apply import to_float, train_forward
from segjax.ops.resize import bilinear
from segjax.runtime.optim import make_optimizer
from segjax.typing import IGNORE, Method
from segjax.verbs.workloads import Arrays, Workload
from segjax.weights import safetensors_io, walk

TOLERANCE = {"float32": {"gradient_norm": 5e-3, "others": 1e-4}, "bfloat16": {"gradient_norm": 0.2, "others": 3e-2}}
"""A hundred BatchNorms over few values multiply rounding, so the gradient's norm has more room than loss and logits."""


def draw_batch(shapes: Mapping[str, Any], classes: int) -> Callable[[np.random.Generator], Arrays]:
    """Random uint8 images, labels in patches of 16 pixels with one patch in `classes` + 1 ignored, for arrays of these shapes."""

    def one(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name.endswith("_image"):
            return rng.integers(0, 256, shape, np.uint8)
        if name.endswith("_label"):
            patches = rng.integers(0, classes + 1, (shape[0], -(-shape[1] // 16), -(-shape[2] // 16)))
            label = patches.repeat(16, 1).repeat(16, 2)[:, : shape[1], : shape[2]]
            return np.where(label == classes, IGNORE, label).astype(np.uint8)
        return np.zeros(shape, np.uint8)

    return lambda rng: {name: one(rng, name, tuple(leaf.shape)) for name, leaf in shapes.items()}


def supervised(
    model, layout: Any, optimizer: Mapping[str, Any], *, devices: int, batch: int, height: int, width: int, dtype: str, peer: str
) -> Workload:
    """The step of `methods.source_only`, held against the same written plainly; its network's weights come from torch where that is there.

    layout: the table of the network's public weights (`segjax.weights`), by which the peer's are taken over.
    """
    opt = make_optimizer(**optimizer, schedule="poly", total_steps=10**6)
    method = source_only.make(model=model, optimizer=opt)
    rows = batch * devices
    shapes = {
        "source_image": jax.ShapeDtypeStruct((rows, height, width, 3), jnp.uint8),
        "source_label": jax.ShapeDtypeStruct((rows, height, width), jnp.uint8),
    }

    def plain(state, inputs):
        """Full-size logits, optax's cross-entropy over them, autodiff."""
        _, key = jax.random.split(state.step_key())
        label = inputs["source_label"]

        def loss(params):
            outputs, _ = train_forward(model, params, state.batch_stats, to_float(inputs["source_image"]), key)
            logits = bilinear(outputs["logits"], (label.shape[1], label.shape[2]), align_corners=model.align_corners)
            valid = label != IGNORE
            each = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(valid, label, 0).astype(jnp.int32))
            return jnp.sum(jnp.where(valid, each, 0)) / jnp.sum(valid)

        value, gradient = jax.value_and_grad(loss)(state.params)
        return {"loss/ce": value, "gradient_norm": optax.global_norm(gradient)}

    return Workload(
        step=lambda state, inputs: method.step(state, (), inputs),
        draw=draw_batch(shapes, model.num_classes),
        reference=jax.jit(plain, compiler_options=unoptimised()),
        tolerance=TOLERANCE[dtype],
        rows=rows,
        sizes={"batch": batch, "height": height, "width": width, "classes": model.num_classes, "dtype": dtype},
        start=lambda: initial(method, shapes),
        dtype=dtype,
        peer=peer,
        adopt=functools.partial(adopted, model, layout),
        compared=functools.partial(evaluated, model),
    )


def adopted(model: Any, layout: Any, state: Any, weights: Arrays) -> Any:
    """The state of a training step with the weights that the peer has, by the table of their public names."""
    like = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 96, 3)))
    flat = walk.to_segjax(weights, layout.layout(weights), safetensors_io.flatten(like), name="the peer's weights")
    return state.with_variables(safetensors_io.unflatten(flat))


def evaluated(model: Any, state: Any, inputs: Any) -> dict[str, jax.Array]:
    """What is held against the peer's answer: the evaluation logits of the source images."""
    outputs = jax.jit(lambda variables, image: model.apply(variables, to_float(image)))(state.variables, inputs["source_image"])
    return {"logits": outputs["logits"]}


def of_method(method: Method, frozen: Any, shapes: Mapping[str, Any], *, classes: int, sizes: Mapping[str, Any], dtype: str) -> Workload:
    """The step of any method. Its reference is the step itself as the compiler's optimisations left it alone: what they break shows."""

    def step(carry, inputs):
        state, weights = carry
        state, metrics = method.step(state, weights, inputs)
        return (state, weights), metrics

    def reference(carry, inputs):
        return jax.jit(lambda carry, inputs: step(carry, inputs)[1], compiler_options=unoptimised())(carry, inputs)

    return Workload(
        step=step,
        draw=draw_batch(shapes, classes),
        reference=reference,
        tolerance=2e-3 if dtype == "float32" else 5e-2,
        rows=max(leaf.shape[0] for leaf in shapes.values()),
        sizes=sizes,
        start=lambda: (initial(method, shapes), frozen),
        dtype=dtype,
    )


def initial(method: Method, shapes: Mapping[str, Any]) -> Any:
    """A fresh state, no two leaves of which share a buffer: it is donated. Made by the CPU, which need not optimise what runs once."""
    with jax.default_device(jax.devices("cpu")[0]):
        batch = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
        state = jax.jit(method.init, compiler_options={"xla_backend_optimization_level": 0})(jax.random.key(0), batch)
        return jax.tree.map(jnp.copy, state)


def unoptimised() -> dict[str, Any] | None:
    """Compiler options for what runs once, where the platform has them."""
    return {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None


def accelerated(here: Any, there: Any) -> Any:
    """A default size: `here` on a CPU, `there` on an accelerator."""
    return here if jax.default_backend() == "cpu" else there

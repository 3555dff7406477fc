"""Model 2 of the two-model system: stylized source, and a supervised contrastive loss between two views of the target (zgerem/UDA).

L = CE(phi(x_s->t), y_s) + lambda_ent * mean rho(entropy(phi(x_t))) + lambda_con * L_con(e(x_t), e(x_t->s), y_t)

where x_s->t is the source in the look of the target (FDA), x_t->s the target in the look of the source, e the L2-normalised embedding of
sampled pixels and y_t the target's labels: what model 1 made of it (`segjax pseudo-label`), or the truth, as an upper bound. Model 1 is
`segjax.methods.fda` with betas=() and, as the seed describes it, greyscale=True.
"""

import functools
from typing import Self

import jax
import jax.numpy as jnp
import optax

from segjax.errors import ConfigError
from segjax.nets.apply import in_turn, predictor, target_image, to_float
from segjax.nets.projection import Projection
from segjax.ops import memory_bank, pixel_samples
from segjax.ops.contrastive import FORMS, supervised_contrastive
from segjax.ops.fourier import Variant, amplitude_transfer
from segjax.ops.photometric import color_jitter
from segjax.ops.pixel_losses import robust_entropy
from segjax.ops.supervised import supervised_terms
from segjax.runtime.state import TrainState
from segjax.runtime.update import apply_gradients, gradients
from segjax.typing import IGNORE, Array, Batch, Frozen, Key, Method, Metrics, Terms

PROJECTION = "projection"


class ContrastiveState(TrainState):
    """TrainState with a projection head among the parameters, which never leaves training, and the memory of earlier steps' keys."""

    bank: memory_bank.MemoryBank | None = None

    @property
    def variables(self) -> dict:
        return _without_head(super().variables)

    @property
    def ema_variables(self) -> dict:
        return _without_head(super().ema_variables)

    def with_variables(self, variables: dict) -> Self:
        """The network's variables from elsewhere; the projection head stays as it is."""
        head = {name: part for name, part in self.params.items() if name == PROJECTION}
        return super().with_variables({**variables, "params": {**variables["params"], **head}})


def _without_head(variables: dict) -> dict:
    return {**variables, "params": {name: part for name, part in variables["params"].items() if name != PROJECTION}}


def _embedding(outputs: dict[str, Array], name: str) -> Array:
    if name not in outputs:
        raise ConfigError(f"method.embedding={name!r}: this network gives {', '.join(outputs)} alone")
    return outputs[name]


def make(
    *,
    model,
    optimizer: optax.GradientTransformation,
    beta: float = 0.09,
    variant: Variant = "centred",
    entropy_weight: float = 0.005,
    entropy_eta: float = 2.0,
    entropy_start: int = 0,
    entropy_normalizer: float | None = None,
    contrast_weight: float = 1.0,
    contrast_start: int = 0,
    form: str = "negatives",
    temperature: float = 0.07,
    base_temperature: float | None = None,
    embedding: str = "logits",
    projection: int = 0,
    samples: int = 2000,
    sampling: str = "uniform",
    keys: str = "image",
    memory: int = 0,
    target_ce_weight: float = 0.0,
    target_ce_view: str = "stylized",
    target_ce_start: int = 0,
    statistics: str = "joint",
    aux_weight: float = 0.1,
    class_weights: tuple[float, ...] | None = None,
    jitter: float = 0.0,
    ema_decay: float = 0.0,
    accumulate: int = 1,
) -> Method:
    """One step reads source images with labels and target images with labels of whatever origin (`data.target_labels=True`).

    beta, variant: the window of both stylizations (`segjax.methods.fda`). entropy_*: as there. contrast_weight: lambda_con;
    contrast_start: its first step (the seed's switch2contrast, 50,000 of 60,000 steps; its entropy starts there too).
    samples: pixels of each image, drawn with replacement, the same places in both views. sampling: "uniform" (the seed's) or "balanced",
    every class of the image equally likely. embedding: "logits" (the seed's, on DeepLab: no head) or "features" (its ENet's 64 channels,
    model.embedding=64); both are read at the label's size. projection: width of a two-layer head over the embedding, 0 for none.
    keys: anchors of the target meet the stylized pixels of their own "image" (the seed's; its batch is one image) or of the whole "batch",
    over all devices. memory: so many keys of earlier steps are met too (a ring buffer; keys="batch"). form, temperature, base_temperature:
    `ops.contrastive.supervised_contrastive`; the seed has form="negatives" and a bug in its row maximum that is not repeated here.
    target_ce_weight: cross-entropy of the target's labels on its "stylized" view (the seed's "CE" row) or on the "target" as it is, from
    step target_ce_start. With the three weights of the target at 0 the target lends its look alone: the seed's "CE on Src".

    statistics: "joint", BatchNorm's running statistics see all three views, as the code; "target", those of the plain target alone.

    Not repeated from zgerem/UDA, none of which its report mentions: means subtracted in one view and not in the other, RGB and BGR mixed
    between the loaders, the snapshot chosen by the target's labels. Off by default and not in it: jitter (after stylization), ema_decay.
    """
    checks = {
        "form": (form, FORMS),
        "embedding": (embedding, ("logits", "features")),
        "sampling": (sampling, ("uniform", "balanced")),
        "keys": (keys, ("image", "batch")),
        "target_ce_view": (target_ce_view, ("stylized", "target")),
        "statistics": (statistics, ("joint", "target")),
    }
    for name, (value, known) in checks.items():
        if value not in known:
            raise ConfigError(f"method.{name}={value!r}: expected {' or '.join(map(repr, known))}")
    if samples < 2 or memory < 0 or projection < 0:
        raise ConfigError(f"method.samples={samples}, memory={memory}, projection={projection}: expected 2 or more, 0 or more, 0 or more")
    if memory and keys != "batch":
        raise ConfigError(f"method.memory={memory}: keys of earlier steps belong to no image of this one: set method.keys='batch'")
    contrasts, labels_target = contrast_weight > 0, target_ce_weight > 0
    needs_labels = contrasts or labels_target
    needs_stylized = contrasts or (labels_target and target_ce_view == "stylized")
    needs_target = contrasts or entropy_weight > 0 or (labels_target and target_ce_view == "target")
    if statistics == "target" and not needs_target:
        raise ConfigError("method.statistics='target' with nothing that reads the plain target: use 'joint'")
    supervised = functools.partial(supervised_terms, align_corners=model.align_corners, aux_weight=aux_weight)
    head = Projection(projection) if projection else None

    def init(key: Key, batch: Batch) -> ContrastiveState:
        init_key, head_key, key = jax.random.split(key, 3)
        image = to_float(batch["source_image"])
        variables = model.init(init_key, image, train=False)
        dims = jax.eval_shape(lambda v: _embedding(model.apply(v, image, train=False), embedding), variables).shape[-1]
        if head is not None:
            variables = {**variables, "params": {**variables["params"], PROJECTION: head.init(head_key, jnp.zeros((1, dims)))["params"]}}
        state = ContrastiveState.create(key, variables, optimizer, ema=ema_decay > 0)
        return state.replace(bank=memory_bank.empty(memory, projection or dims)) if memory else state

    def jittered(key: Key, image: Array) -> Array:
        return color_jitter(key, image, brightness=jitter, contrast=jitter, saturation=jitter, hue=jitter / 4) if jitter else image

    def embedded(params, outputs: dict[str, Array], position: Array, size: tuple[int, int]) -> Array:
        """L2-normalised embedding float32 [B,S,D] of sampled pixels of the label's grid."""
        corners = model.align_corners
        found = pixel_samples.at_positions(_embedding(outputs, embedding).astype(jnp.float32), position, size, align_corners=corners)
        if head is not None:
            found = jnp.asarray(head.apply({"params": params[PROJECTION]}, found))
        return found * jax.lax.rsqrt(jnp.maximum(jnp.sum(found * found, -1, keepdims=True), 1e-12))

    def contrast(anchors: Array, views: Array, label: Array, bank, classes: int) -> tuple[Array, Array]:
        loss = functools.partial(
            supervised_contrastive, num_classes=classes, temperature=temperature, base_temperature=base_temperature, form=form
        )
        if keys == "image":
            return loss(anchors, views, label, label)
        flat = lambda x: x.reshape(-1, *x.shape[2:])
        key, key_label = flat(views), flat(label)
        if bank is not None:
            key, key_label = jnp.concatenate([key, bank.embedding]), jnp.concatenate([key_label, bank.label.astype(key_label.dtype)])
        return loss(flat(anchors), key, flat(label), key_label)

    def contrast_terms(params, found, part, key, step, bank) -> tuple[Terms, memory_bank.MemoryBank | None]:
        label = part["target_label"]
        size, classes = label.shape[1:], found["target"]["logits"].shape[-1]
        if sampling == "uniform":
            position = pixel_samples.uniform_positions(key, label.shape[0], size[0] * size[1], samples)
        else:
            position = pixel_samples.balanced_positions(key, label, samples, classes)
        anchors, views = (embedded(params, found[name], position, size) for name in ("target", "stylized"))
        sampled = pixel_samples.labels_at(label, position)
        total, count = contrast(anchors, views, sampled, bank, classes)
        weight = jnp.where(step >= contrast_start, contrast_weight, 0.0)
        if bank is not None:
            bank = memory_bank.push(bank, jax.lax.stop_gradient(views).reshape(-1, views.shape[-1]), sampled.reshape(-1))
        return {"loss/contrast": (weight * total, count)}, bank

    def entropy_terms(outputs: dict[str, Array], step: Array) -> Terms:
        entropy = robust_entropy(outputs["logits"], eta=entropy_eta, normalizer=entropy_normalizer)
        weight = jnp.where(step >= entropy_start, entropy_weight, 0.0)
        return {"loss/entropy": (weight * jnp.sum(entropy), jnp.asarray(entropy.size, jnp.float32))}

    def views(state: TrainState, batch: Batch) -> tuple[dict[str, Array], Key]:
        """The step's inputs: both stylizations, the plain target, the labels."""
        source_jitter, target_jitter, stylized_jitter, key = jax.random.split(state.step_key(), 4)
        source, target = to_float(batch["source_image"]), target_image(batch)
        if target.shape[0] != source.shape[0]:
            raise ConfigError(f"{source.shape[0]} source and {target.shape[0]} target images in a batch: the pairs need one number of both")
        inputs = {"source_label": batch["source_label"]}
        inputs["source"] = jittered(source_jitter, amplitude_transfer(source, target, beta, variant=variant))
        if needs_target:
            inputs["target"] = jittered(target_jitter, target)
        if needs_stylized:
            inputs["stylized"] = jittered(stylized_jitter, amplitude_transfer(target, source, beta, variant=variant))
        if needs_labels:
            if "target_label" not in batch:
                raise ConfigError("the method reads the target's labels, but batches have none: set the stage's data.target_labels=True")
            inputs["target_label"] = batch["target_label"]
        return inputs, key

    def step(state: ContrastiveState, frozen: Frozen, batch: Batch) -> tuple[ContrastiveState, Metrics]:
        del frozen
        inputs, key = views(state, batch)

        def terms(params, part, carry, key):
            (before, bank), (dropout_key, sample_key) = carry, jax.random.split(key)
            seen = {name: part[name] for name in ("source", "target", "stylized") if name in part}
            kept = tuple(seen) if statistics == "joint" else ("target",)
            found, after = in_turn(model, params, before, seen, dropout_key, kept=kept)
            total = supervised(found["source"], part["source_label"], class_weights=class_weights)
            if entropy_weight > 0:
                total |= entropy_terms(found["target"], state.step)
            if labels_target:
                weight = jnp.where(state.step >= target_ce_start, target_ce_weight, 0.0)
                total |= supervised(found[target_ce_view], part["target_label"], name="loss/target_ce", weight=weight)
            if contrasts:
                more, bank = contrast_terms(params, found, part, sample_key, state.step, bank)
                total |= more
            return total, (after, bank)

        carry = (state.batch_stats, state.bank)
        found, metrics, (batch_stats, bank) = gradients(terms, state.params, inputs, carry=carry, key=key, accumulate=accumulate)
        if needs_labels:
            metrics["target/labelled"] = jnp.mean(inputs["target_label"] != IGNORE, dtype=jnp.float32)
        return apply_gradients(state, found, optimizer, batch_stats, ema_decay).replace(bank=bank), metrics

    return Method(init, step, predictor(model))

"""DiGA's image translator, trained: source images in the look of the target and back (fy-vision/DiGA, train_domain_translator.py).

L = 0.5 adversarial + 10 cycle + 20 seg-edge + 0.1 perceptual + 0.001 self-reconstruction

Two encoders and two decoders against two discriminators of three scales (least squares). seg-edge holds the translated source to the
original wherever its label changes, so that labels stay right. What is kept is the encoder of the source and the decoder to the target:
one `nets.translator.Translator`, which is the stage's `model`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from segjax.errors import ConfigError
from segjax.nets.apply import target_image, to_float
from segjax.nets.domain_views import translate
from segjax.nets.perceptual import VGG19, WEIGHTS
from segjax.nets.translator_cycle import PatchDiscriminator, TranslatorCycle, source_to_target
from segjax.ops.label_edges import label_edges
from segjax.ops.two_views import by_view, one_batch
from segjax.typing import Array, Batch, Frozen, Key, Method, Metrics


class TranslatorState(struct.PyTreeNode):
    """step, key: as `runtime.state.TrainState`. params: of the `TranslatorCycle`. judges: the discriminators', "source" and "target"."""

    step: Array
    key: Key
    params: Any
    opt_state: Any
    judges: Any
    judges_opt_state: Any

    @property
    def variables(self) -> dict:
        """The translator from source to target, as `Translator.apply` takes it."""
        return {"params": source_to_target(self.params), "batch_stats": {}}

    @property
    def ema_variables(self) -> dict:
        """The same: what the stage leaves."""
        return self.variables

    def with_variables(self, variables: dict) -> "TranslatorState":
        """This state with another translator from source to target; the way back and the discriminators stay."""
        there = {"encoder_source": variables["params"]["encoder"], "decoder_target": variables["params"]["decoder"]}
        return self.replace(params={**self.params, **there})


def make(
    *,
    model,
    optimizer: optax.GradientTransformation,
    adversarial_weight: float = 0.5,
    cycle_weight: float = 10.0,
    edge_weight: float = 20.0,
    perceptual_weight: float = 0.0,
    self_weight: float = 0.001,
    judge_width: int = 64,
    judge_scales: int = 3,
) -> Method:
    """model: the `Translator` that is wanted; the other direction gets its sizes. optimizer: of translators and of discriminators, each its
    own state (Adam 1e-4, betas .5 and .999, poly .9 over 50,000 steps, batch 1 low + 1 high resolution of 512x896).

    perceptual_weight: 0.1 in the paper, with VGG19's weights in the stage's frozen={"vgg": FILE}; 0 leaves the term out. VGG sees the
    translators' normalised BGR images, as in the code (which halves images wider than 1,024 first; here they stay).
    Discriminators step first, on images that are then judged by the new ones, as there; the images are made once.
    predict gives float RGB images [B,H,W,3] in [0,1] in the target's look.
    """
    cycle = TranslatorCycle(model.width, model.blocks, model.dtype)
    judge = PatchDiscriminator(judge_width, scales=judge_scales, dtype=model.dtype)

    def init(key: Key, batch: Batch) -> TranslatorState:
        cycle_key, source_key, target_key, key = jax.random.split(key, 4)
        source, target = to_float(batch["source_image"]), target_image(batch)
        params = cycle.init(cycle_key, source, target)["params"]
        judges = {name: judge.init(k, source)["params"] for name, k in (("source", source_key), ("target", target_key))}
        return TranslatorState(jnp.zeros((), jnp.int32), key, params, optimizer.init(params), judges, optimizer.init(judges))

    def opinions(params: Any, images: Array) -> list[Array]:
        return [jnp.asarray(found) for found in judge.apply({"params": params}, images)]

    def judges_loss(judges: Any, images: dict[str, Array]) -> Array:
        """Least squares, real 1 and made 0: a sum over scales, for both domains. Real and made lie side by side in one pass."""
        total = 0.0
        for domain, made in (("target", "source_to_target"), ("source", "target_to_source")):
            for found in opinions(judges[domain], one_batch(jnp.stack([images[domain], images[made]], 1))):
                pair = by_view({"": found}, 2)[""]
                total += jnp.mean((pair[:, 0] - 1) ** 2) + jnp.mean(pair[:, 1] ** 2)
        return jnp.asarray(total)

    def parts(images: dict[str, Array], judges: Any, edges: Array, vgg: Any) -> Metrics:
        """The weighted terms of the translators' loss."""
        adversarial = sum(
            jnp.mean((found - 1) ** 2)
            for domain, made in (("target", "source_to_target"), ("source", "target_to_source"))
            for found in opinions(judges[domain], images[made])
        )
        difference = lambda a, b: jnp.mean(jnp.abs(images[a] - images[b]))
        found = {
            "loss/adversarial": adversarial_weight * adversarial,
            "loss/cycle": cycle_weight * (difference("source_cycle", "source") + difference("target_cycle", "target")),
            "loss/self": self_weight * (difference("source_again", "source") + difference("target_again", "target")),
            "loss/edge": edge_weight * jnp.mean(edges * jnp.abs(images["source_to_target"] - images["source"])),
        }
        if vgg is not None:
            pairs = (("source_to_target", "source"), ("target_to_source", "target"))
            found["loss/perceptual"] = perceptual_weight * sum(vgg(images[made], images[content]) for made, content in pairs)
        return {name: jnp.asarray(value, jnp.float32) for name, value in found.items()}

    def step(state: TranslatorState, frozen: Frozen, batch: Batch) -> tuple[TranslatorState, Metrics]:
        source, target = to_float(batch["source_image"]), target_image(batch)
        if source.shape[0] != target.shape[0]:
            raise ConfigError(f"{source.shape[0]} source and {target.shape[0]} target images in a batch: give one number of both")
        vgg = _perceptual(frozen, model.dtype) if perceptual_weight else None
        edges = label_edges(batch["source_label"])[..., None]
        images, back = jax.vjp(lambda params: cycle.apply({"params": params}, source, target), state.params)

        judged, slope = jax.value_and_grad(judges_loss)(state.judges, jax.lax.stop_gradient(images))
        updates, judges_opt_state = optimizer.update(slope, state.judges_opt_state, state.judges)
        judges = optax.apply_updates(state.judges, updates)

        def loss(images):
            found = parts(images, judges, edges, vgg)
            return sum(found.values()), found

        slopes, metrics = jax.grad(loss, has_aux=True)(images)
        (gradient,) = back(slopes)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        metrics |= {"judges/loss": judged, "gradient_norm": optax.global_norm(gradient)}
        new = {"params": optax.apply_updates(state.params, updates), "opt_state": opt_state}
        return state.replace(step=state.step + 1, judges=judges, judges_opt_state=judges_opt_state, **new), metrics

    def predict(state: TranslatorState, frozen: Frozen, image: Array) -> Array:
        del frozen
        return translate(state.variables, to_float(image), model.dtype)

    return Method(init, step, predict)


def _perceptual(frozen: Frozen, dtype: Any):
    """The distance of a made image from its content by VGG19: weighted mean absolute differences of five activations."""
    if not isinstance(frozen, dict) or "vgg" not in frozen:
        raise ConfigError('method.perceptual_weight > 0 needs VGG19: set the stage\'s frozen={"vgg": "vgg19.pth"}, torchvision\'s file')
    params = frozen["vgg"]["params"]
    widths = tuple(params[f"features_{index}"]["kernel"].shape[-1] for index in (0, 5, 10, 19, 28))

    def features(x: Array) -> list[Array]:
        return [jnp.asarray(found, jnp.float32) for found in VGG19(widths, dtype).apply({"params": params}, x)]

    def distance(made: Array, content: Array) -> Array:
        pairs = zip(WEIGHTS, features(made), jax.lax.stop_gradient(features(content)), strict=True)
        return jnp.asarray(sum(weight * jnp.mean(jnp.abs(a - b)) for weight, a, b in pairs))

    return distance

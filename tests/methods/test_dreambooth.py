"""DreamBooth's step: torch diffusers' to the last update, the same on every mesh, adapters, the windows and what each element draws."""

import functools
import itertools

import dreambooth_torch as peer
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_diffusion
from test_contract import copied, fresh, run

from segjax.errors import ConfigError
from segjax.generation import directory, noise
from segjax.methods import dreambooth
from segjax.nets import lora
from segjax.nets.layers import Conv, Dense
from segjax.nets.unet_attention import Attention
from segjax.runtime import mesh as meshes
from segjax.runtime.optim import make_optimizer
from segjax.weights import safetensors_io, walk

BATCH = {"element": np.arange(8, dtype=np.int32)}


def adamw(lr):
    return make_optimizer(name="adamw", lr=lr, weight_decay=1e-2, clip_norm=1.0, schedule="constant")


def parts(model, **options):
    """The method's arguments for a Stable Diffusion directory."""
    return {"text": model.text.module, "unet": model.unet.module, "vae": model.vae.module, **options}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, goldens):
    return directory.read(tiny_diffusion.write(tmp_path_factory.mktemp("tiny"), goldens))


class Text(nn.Module):
    """Token ids to a context, by layers that adapters know."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ids):
        x = self.param("token_embedding", nn.initializers.normal(1.0), (30, 8))[ids].astype(self.dtype)
        joined = nn.tanh(_InProj(self.dtype, name="resblocks")(x))
        return {"last": x + Dense(8, dtype=self.dtype, name="out")(joined)}

    def example(self):
        return (jax.ShapeDtypeStruct((1, 5), jnp.int32),)


class _InProj(nn.Module):
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        return Dense(24, dtype=self.dtype, name="in_proj")(x)


class Denoiser(nn.Module):
    """Latents, times and a context to a prediction: a convolution, a time embedding and cross-attention."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, latents, times, context):
        time = jnp.stack([jnp.sin(times / 100), jnp.cos(times / 100)], -1)
        x = Conv(8, dtype=self.dtype, name="conv_in")(latents) + Dense(8, dtype=self.dtype, name="time")(time)[:, None, None]
        b, h, w, c = x.shape
        x = x + Attention(2, dtype=self.dtype, name="attn2")(x.reshape(b, h * w, c), context).reshape(x.shape)
        return Conv(4, dtype=self.dtype, name="conv_out")(nn.silu(x)).astype(jnp.float32)

    def example(self):
        return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 4, 4, 4), (1,), (1, 5, 8)))


class Autoencoder(nn.Module):
    """Latents of half the side."""

    scaling_factor: float = 0.5
    dtype: jnp.dtype = jnp.float32

    def setup(self):
        self.encoder, self.decoder = Conv(8, (3, 3), 2, padding=1, dtype=self.dtype), Conv(12, dtype=self.dtype)

    def __call__(self, image):
        return self.decode(self.encode(image)[0])

    def encode(self, image):
        return tuple(jnp.split(self.encoder(2 * image - 1).astype(jnp.float32), 2, axis=-1))

    def decode(self, latents):
        b, h, w, _ = latents.shape
        x = self.decoder(latents).reshape(b, h, w, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(b, 2 * h, 2 * w, 3).astype(jnp.float32) / 2 + 0.5


WHOLE = {"text": Text(), "unet": Denoiser(), "vae": Autoencoder()}


@functools.cache  # what was compiled for a method serves every test
def make(half=False, **options):
    """A method over the three small networks."""
    modules = {name: module.clone(dtype=jnp.bfloat16) for name, module in WHOLE.items()} if half else WHOLE
    schedule = noise.from_config({"prediction_type": "v_prediction"})
    return dreambooth.make(**{**modules, "schedule": schedule, "optimizer": adamw(1e-2), "crop": 8, "prior_weight": 0.7, **options})


@pytest.fixture(scope="module")
def weights():
    """Variables of each network."""
    examples = {name: module.example() for name, module in WHOLE.items() if name != "vae"} | {"vae": (jnp.zeros((1, 8, 8, 3)),)}
    rng, shapes = np.random.default_rng(7), {name: jax.eval_shape(WHOLE[name].init, jax.random.key(7), *examples[name]) for name in WHOLE}
    drawn = lambda shape: rng.normal(size=shape).astype(np.float32) / np.float32(np.sqrt(np.prod(shape[:-1])))
    return jax.tree.map(lambda leaf: drawn(leaf.shape) if leaf.ndim > 1 else np.zeros(leaf.shape, np.float32), shapes)


@pytest.fixture(scope="module")
def frozen(weights):
    rng = np.random.default_rng(0)
    image = lambda count: rng.integers(0, 255, (count, 14, 18, 3)).astype(np.uint8)
    ids = rng.integers(0, 30, (2, 5)).astype(np.int32)
    return {"vae": weights["vae"], "ids": ids, "instance_images": image(1), "class_images": image(3)}


def learn(weights, frozen, steps, mesh, method, state=None):
    """`steps` steps from the networks' own weights: the state, and one dict of floats a step."""
    if state is None:
        state = fresh(method, BATCH)
        if "unet" in state.params:
            state = state.with_variables({"params": {name: weights[name]["params"] for name in state.params}})
    return run(method, BATCH, steps, mesh, state=copied(state), frozen=frozen)


@pytest.fixture(scope="module")
def unbroken(weights, frozen):
    """Four steps on one device."""
    return learn(weights, frozen, 4, meshes.make_mesh(1), make())


def equals_torch(case: str, expected: dict, model, monkeypatch, names):
    """One step from the same weights, noise and times; `names`: of the tensors that `expected` holds."""
    prediction, prior = peer.CASES[case]
    streams = ("instance", "class")[: 1 + prior]
    side = model.size[0]
    drawn = peer.draws(side // model.vae.module.stride)
    stored = itertools.cycle([dreambooth.Draws(*(drawn[f"{s}_{kind}"] for kind in ("sample", "noise", "times"))) for s in streams])
    monkeypatch.setattr(dreambooth, "draw", lambda *args: next(stored))
    given = peer.inputs(side)
    frozen = {"vae": model.vae.variables, "ids": given["ids"][: len(streams)]}
    frozen |= {f"{stream}_images": given[stream] for stream in streams}
    schedule = noise.from_config({**model.scheduler, "prediction_type": prediction})
    options = dict(schedule=schedule, crop=side, prior_weight=peer.PRIOR_WEIGHT, optimizer=adamw(peer.LR))
    method = dreambooth.make(**parts(model, **options))
    batch = {"element": np.arange(peer.ROWS, dtype=np.int32)}
    state = jax.eval_shape(method.init, jax.random.key(0), batch)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state.replace(key=None)).replace(key=jax.random.key(0))
    state = state.with_variables({"params": {name: getattr(model, name).variables["params"] for name in ("unet", "text")}})
    after, metrics = jax.jit(method.step)(state, frozen, batch)
    assert float(metrics["loss/instance"]) == pytest.approx(float(expected["loss_instance"]), abs=1e-5)
    assert float(metrics.get("loss/class", 0)) == pytest.approx(float(expected.get("loss_class", 0)), abs=1e-5)
    assert float(metrics["gradient_norm"]) == pytest.approx(float(expected["norm"]), rel=1e-4)
    moments = next(part.mu for part in jax.tree.leaves(after.opt_state, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(part, "mu"))
    gradients = public(model, jax.tree.map(lambda leaf: leaf / np.float32(0.1), jax.device_get(moments)))
    updated = public(model, after.params)
    assert names <= set(gradients) and set(gradients) == set(updated)
    for name in names:
        slope, new = expected[f"gradient/{name}"], expected[f"updated/{name}"]
        np.testing.assert_allclose(gradients[name], slope, atol=1e-4 * max(np.abs(slope).max(), 1e-5), err_msg=name)
        tells = np.abs(slope) > 1e-3 * np.abs(slope).max() + 1e-7  # Adam makes a whole step of a gradient that is rounding
        scale = max(np.abs(new).max(), 10 * peer.LR)
        np.testing.assert_allclose(updated[name][tells], new[tells], atol=1e-4 * scale, err_msg=name)
        assert np.abs(updated[name] - new).max() < 2.2 * peer.LR and (tells.any() or np.abs(slope).max() < 1e-6), name


def public(model, params) -> dict[str, np.ndarray]:
    """{"unet.conv_in.weight": ..., "text.encoder...": ...}, as torch names and lays them out."""
    found = {}
    for name in ("unet", "text"):
        arrays = walk.to_source(safetensors_io.flatten({"params": jax.device_get(params[name])}), getattr(model, name).form)
        found |= {f"{name}.{key.removeprefix('text_model.')}": value for key, value in arrays.items()}
    return found


@pytest.mark.parametrize("case", ["v_prediction_prior"])
def test_a_step_of_torch_diffusers(case, goldens, tiny, monkeypatch):
    """The stored one; a step of these networks compiles for 15 seconds, so the other cases are left to the next test."""
    stored = np.load(goldens / "dreambooth.npz")
    for name, value in peer.draws(4).items():
        np.testing.assert_array_equal(stored[name], value)
    expected = {name.removeprefix(f"{case}/"): stored[name] for name in stored.files if name.startswith(f"{case}/")}
    equals_torch(case, expected, tiny, monkeypatch, set(peer.KEPT))


@pytest.mark.parametrize("case", peer.CASES)
def test_a_step_of_torch_diffusers_every_tensor(case, goldens, monkeypatch):
    pytest.importorskip("torch"), pytest.importorskip("diffusers")
    model = directory.read(goldens / "stable_diffusion")
    expected = peer.step(goldens / "stable_diffusion", *peer.CASES[case], peer.draws(16))
    names = {name.removeprefix("updated/") for name in expected if name.startswith("updated/")}
    equals_torch(case, expected, model, monkeypatch, names)


@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
def test_the_loss_by_hand(kind, weights, frozen, unbroken):
    """Velocity, both streams and both networks; epsilon, one stream, and a text encoder that does not train."""
    key, elements, streams = jax.random.key(3), BATCH["element"], dreambooth.STREAMS
    row = unbroken[1][0]
    if kind == "epsilon":
        method = make(schedule=noise.from_config({"prediction_type": kind}), train_text=False)
        frozen, streams = {**frozen, "ids": frozen["ids"][:1], "text": weights["text"]}, streams[:1]
        state, (row,) = learn(weights, frozen, 1, meshes.make_mesh(1), method)
        assert set(state.params) == {"unet"} and set(row) == {"loss/instance", "gradient_norm"}
    context = np.asarray(jax.jit(WHOLE["text"].apply)(weights["text"], frozen["ids"])["last"])

    @jax.jit
    def seen(stream_key, images):
        image = dreambooth.crops(stream_key, elements, images, 8) / jnp.float32(255)
        mean, log_variance = WHOLE["vae"].apply(weights["vae"], image, method="encode")
        return mean, log_variance, dreambooth.draw(stream_key, elements, mean.shape[1:], 1000)

    share = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    for number, stream in enumerate(streams):
        stream_key = dreambooth.stream_key(key, stream)
        images = frozen[f"{stream}_images"]
        mean, log_variance, drawn = jax.device_get(seen(stream_key, images.repeat(3 // len(images), 0)))  # of one size for both
        z = 0.5 * (mean + np.exp(log_variance / 2) * drawn.sample)
        signal, sigma = (np.sqrt(x[drawn.times])[:, None, None, None].astype(np.float32) for x in (share, 1 - share))
        text = np.broadcast_to(context[number], (8, 5, 8))
        output = jax.jit(WHOLE["unet"].apply)(weights["unet"], signal * z + sigma * drawn.noise, drawn.times, text)
        target = drawn.noise if kind == "epsilon" else signal * drawn.noise - sigma * z
        assert row[f"loss/{stream}"] == pytest.approx((0.7 if number else 1) * float(np.mean((np.asarray(output) - target) ** 2)), rel=1e-4)


def test_eight_devices_give_what_one_gives_and_a_restart_changes_nothing(weights, frozen, unbroken):
    one, history = unbroken
    many, other = learn(weights, frozen, 4, meshes.make_mesh(2, 4), make())
    for mine, theirs in zip(history, other, strict=True):
        assert set(mine) == {"loss/instance", "loss/class", "gradient_norm"} and all(np.isfinite(value) for value in mine.values())
        assert mine["loss/instance"] == pytest.approx(theirs["loss/instance"], abs=1e-5)
        assert mine["loss/class"] == pytest.approx(theirs["loss/class"], abs=1e-5)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(many.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    half, _ = learn(weights, frozen, 2, meshes.make_mesh(1), make())
    resumed, rest = learn(weights, frozen, 2, meshes.make_mesh(1), make(), state=half)
    assert rest == history[2:] and int(resumed.step) == 4
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(resumed.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_parts_of_a_batch_and_latents_made_before_give_the_same_step(weights, frozen, unbroken):
    """Also: the loss of a fixed set of windows falls, and what predict gives."""
    key = jax.random.key(3)
    encode = lambda stream: dreambooth.moments(
        WHOLE["vae"], frozen["vae"], frozen[f"{stream}_images"], dreambooth.stream_key(key, stream), BATCH["element"], 8
    )
    ready = {"ids": frozen["ids"]} | {f"{stream}_moments": jax.jit(encode, static_argnums=0)(stream) for stream in dreambooth.STREAMS}
    method = make(accumulate=4)
    state, found = learn(weights, ready, 60, meshes.make_mesh(1), method)
    for mine, theirs in zip(found[:4], unbroken[1], strict=False):
        assert mine == pytest.approx(theirs, rel=1e-4)
    assert found[-1]["loss/instance"] < 0.7 * found[0]["loss/instance"]
    with pytest.raises(ConfigError, match="set cache=0"):
        method.predict(state, ready, frozen["instance_images"])
    restored = jax.jit(method.predict)(state, frozen, frozen["class_images"][:, :12, :16])
    assert restored.shape == (3, 12, 16, 3) and restored.dtype == jnp.float32 and 0 <= restored.min() < restored.max() <= 1


def test_half_precision_alters_little_and_the_weights_stay_whole(weights, frozen, unbroken):
    state, rows = learn(weights, frozen, 2, meshes.make_mesh(8), make(half=True))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(np.float32)}
    for mine, theirs in zip(rows, unbroken[1], strict=False):
        assert mine["loss/instance"] == pytest.approx(theirs["loss/instance"], rel=0.03) and mine != theirs


def test_every_element_draws_for_itself():
    key = jax.random.key(1)
    draw = jax.jit(lambda elements: dreambooth.draw(key, elements, (2, 2, 4), 1000))
    several, alone = draw(np.arange(64)), draw(np.array([7]))
    for a, b in zip(several, alone, strict=True):
        np.testing.assert_array_equal(a[7:8], b)
    assert len({row.tobytes() for row in np.asarray(several.noise)}) == 64 and not np.array_equal(several.noise, several.sample)
    assert 0 <= several.times.min() < 150 and 850 < several.times.max() < 1000
    images = np.stack([np.arange(20 * 30 * 3).reshape(20, 30, 3) % 251, np.full((20, 30, 3), 255)]).astype(np.uint8)
    windows = np.asarray(jax.jit(lambda elements: dreambooth.crops(key, elements, images, 16))(np.arange(512)))
    assert (windows[1::2] == 255).all()
    places = {(y, x): images[0, y : y + 16, x : x + 16].tobytes() for y in range(5) for x in range(15)}
    assert {window.tobytes() for window in windows[::2]} <= set(places.values())
    assert len({window.tobytes() for window in windows[::2]}) > 60  # of 75 windows, 256 draws


def test_adapters_merged_are_adapters_beside_the_kernel():
    rng = np.random.default_rng(0)
    drawn = lambda *shape: rng.normal(size=shape).astype(np.float32)
    params = {
        "mid": {"attn1": {"to_q": {"kernel": drawn(6, 6)}, "to_out_0": {"kernel": drawn(6, 6)}}},
        "layers_0": {"attn2": {"to_k": {"kernel": drawn(3, 5, 6)}}, "ff": {"kernel": drawn(3, 6, 6)}},
        "resblocks": {"in_proj": {"kernel": drawn(2, 4, 12)}},
    }
    fresh = lora.adapters(jax.random.key(0), params, 2)
    paths = ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(fresh)]
    assert [path.rsplit("/kernel")[0] for path in paths[::2]] == [
        "layers_0/attn2/to_k",
        "mid/attn1/to_out_0",
        "mid/attn1/to_q",
        "resblocks/in_proj",
    ]
    for a, b in zip(jax.tree.leaves(lora.merged(params, fresh, 3.0)), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)
    trained = jax.tree.map(lambda leaf: drawn(*leaf.shape), fresh)
    merged = lora.merged(params, trained, 1.5)
    x = drawn(7, 4)
    for layer in range(2):
        pair = trained["resblocks"]["in_proj"]["kernel"]
        beside = np.concatenate([1.5 * (x @ pair["down"][layer, part]) @ pair["up"][layer, part] for part in range(3)], -1)
        plain = x @ params["resblocks"]["in_proj"]["kernel"][layer]
        np.testing.assert_allclose(x @ np.asarray(merged["resblocks"]["in_proj"]["kernel"][layer]), plain + beside, rtol=1e-4, atol=1e-5)
    x = drawn(7, 5)
    pair = trained["layers_0"]["attn2"]["to_k"]["kernel"]
    beside = 1.5 * (x @ pair["down"][2, 0]) @ pair["up"][2, 0]
    plain = x @ params["layers_0"]["attn2"]["to_k"]["kernel"][2]
    np.testing.assert_allclose(x @ np.asarray(merged["layers_0"]["attn2"]["to_k"]["kernel"][2]), plain + beside, rtol=1e-4, atol=1e-5)
    assert merged["layers_0"]["ff"]["kernel"] is params["layers_0"]["ff"]["kernel"]


class Beside(nn.Module):
    """A network whose adapters compute beside the kernels, as torch's peft has them."""

    unet: nn.Module
    adapters: dict
    scale: float

    def __call__(self, *inputs):
        def add(call, inputs, keywords, context):
            result = call(*inputs, **keywords)
            place = self.adapters
            for name in context.module.path[1:]:
                place = place.get(name, {})
            if context.method_name == "__call__" and "kernel" in place:
                result += self.scale * (inputs[0] @ place["kernel"]["down"][0]) @ place["kernel"]["up"][0]
            return result

        with nn.intercept_methods(add):
            return self.unet(*inputs)


def test_adapters_train_alone_and_a_network_computes_as_if_they_stood_beside_it(weights, frozen, unbroken):
    frozen = {**frozen, "unet": weights["unet"], "text": weights["text"]}
    state, history = learn(weights, frozen, 3, meshes.make_mesh(2, 4), make(lora_rank=2, lora_alpha=6.0))
    assert set(state.params) == {"unet_lora", "text_lora"} and set(state.params["unet_lora"]["attn2"]) == {
        "to_q",
        "to_k",
        "to_v",
        "to_out_0",
    }
    assert history[0]["loss/instance"] == pytest.approx(unbroken[1][0]["loss/instance"], abs=1e-5)
    assert history[1]["loss/instance"] != history[0]["loss/instance"]
    found, params = jax.device_get(state.params["unet_lora"]), weights["unet"]["params"]
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=shape).astype(np.float32) for shape in ((2, 4, 4, 4), (2,), (2, 5, 8))]
    unet = WHOLE["unet"]
    merged = jax.jit(unet.apply)({"params": lora.merged(params, found, 3.0)}, *inputs)
    beside = jax.jit(Beside(unet, found, 3.0).apply)({"params": {"unet": params}}, *inputs)
    plain = jax.jit(unet.apply)({"params": params}, *inputs)
    assert np.abs(merged - plain).max() > 1e-3
    np.testing.assert_allclose(merged, beside, atol=1e-5)

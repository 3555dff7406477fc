"""The translator and what trains it: counts, the original's arithmetic in torch's own functions, its two files, any size, gradients."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_state import TorchState, drawn_source, nchw, nhwc

from segjax.errors import ConfigError, WeightsError
from segjax.nets import translator_cycle
from segjax.nets.translator import Translator, to_image, to_network
from segjax.nets.translator_cycle import PatchDiscriminator, TranslatorCycle, halved, source_to_target
from segjax.verbs import networks
from segjax.verbs.variables import shapes
from segjax.weights import safetensors_io, walk
from segjax.weights.diga_translator import DIGA_TRANSLATOR, LAYOUT

TINY = Translator(width=4, blocks=2)


def count(tree):
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


def judged(net, size):
    return jax.eval_shape(net.init_with_output, jax.random.key(0), jax.ShapeDtypeStruct((2, *size, 3), jnp.float32))


def test_counts_and_sizes():
    params = shapes(Translator())["params"]
    assert (count(params["encoder"]), count(params["decoder"])) == (5_385_856, 5_754_243)
    assert count(shapes(TranslatorCycle())) == 2 * (5_385_856 + 5_754_243)
    maps, variables = judged(PatchDiscriminator(), (512, 896))
    assert count(variables) == 8_268_291 and [x.shape for x in maps] == [(2, 32, 56, 1), (2, 16, 28, 1), (2, 8, 14, 1)]


def files():
    """What the public code calls the tensors of its two files, from its constructors."""
    blocks = lambda at: [f"{at}.model.{i}.model.{k}" for i in range(TINY.blocks) for k in (0, 1)]
    names = [f"enc_s.model.{n}" for n in range(3)] + blocks("enc_s.model.3")
    names += blocks("dec_s2t.model.0") + [f"dec_s2t.model.{n}" for n in (2, 4, 5)]
    return {f"{name}.conv.{leaf}" for name in names for leaf in ("weight", "bias")}


def original(torch, source, x):
    """The public code's encoder and decoder over a normalised image."""
    net = TorchState(torch, source)

    def unit(x, at, border, stride=1, activate=True):
        x = net.f.instance_norm(net.conv(net.f.pad(x, (border,) * 4, "reflect"), f"{at}.conv", stride, padding=0))
        return torch.relu(x) if activate else x

    def blocks(x, at):
        for i in range(TINY.blocks):
            x = x + unit(unit(x, f"{at}.model.{i}.model.0", 1), f"{at}.model.{i}.model.1", 1, activate=False)
        return x

    x = unit(nchw(torch, x), "enc_s.model.0", 3)
    x = blocks(unit(unit(x, "enc_s.model.1", 1, 2), "enc_s.model.2", 1, 2), "enc_s.model.3")
    x = blocks(x, "dec_s2t.model.0")
    for at in ("dec_s2t.model.2", "dec_s2t.model.4"):
        x = unit(net.f.interpolate(x, scale_factor=2), at, 2)
    return nhwc(torch.tanh(net.conv(net.f.pad(x, (3,) * 4, "reflect"), "dec_s2t.model.5.conv", padding=0)))


def test_equals_the_original_out_of_its_two_files(tmp_path):
    torch = pytest.importorskip("torch")
    source = drawn_source(TINY, LAYOUT)
    assert set(source) == files()
    for name in ("enc_s", "dec_s2t"):
        state = {key.removeprefix(f"{name}."): torch.from_numpy(value) for key, value in source.items() if key.startswith(name)}
        torch.save({f"module.{key}": value for key, value in state.items()}, tmp_path / f"{name}.pth")
    network = networks.load(tmp_path)
    assert network.module == TINY and set(networks.hashes(tmp_path)) == {"enc_s.pth", "dec_s2t.pth"}
    back = walk.to_source(safetensors_io.flatten(network.variables), LAYOUT)
    assert {key: value.tobytes() for key, value in back.items()} == {key: value.tobytes() for key, value in source.items()}
    image = np.random.default_rng(0).random((2, 18, 29, 3), np.float32)

    def loss(params):
        translated = TINY.apply({"params": params}, image)
        return jnp.square(translated).mean(), translated

    gradients, translated = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(network.variables["params"]))
    padded = np.pad(image, ((0, 0), (0, 2), (0, 3), (0, 0)), mode="edge")
    expected = to_image(original(torch, source, np.asarray(to_network(padded))))[:, :18, :29]
    np.testing.assert_allclose(translated, expected, atol=1e-4)
    kernels = [x for path, x in safetensors_io.flatten(gradients).items() if path.endswith("kernel")]
    assert len(kernels) == 10 and all(np.abs(x).max() > 0 for x in kernels)
    (tmp_path / "dec_s2t.pth").unlink()
    with pytest.raises(WeightsError, match="expected one of"):
        networks.load(tmp_path)
    with pytest.raises(WeightsError, match=r"layout diga_translator: .*dec_s2t\.model\.5\.conv\.weight"):
        DIGA_TRANSLATOR.model({key: value for key, value in source.items() if key.startswith("enc")}, {})


def test_images_go_to_the_network_and_back():
    image = np.random.default_rng(0).random((1, 4, 5, 3), np.float32)
    ends = np.array([[[[1.0] * 3, [-1.0] * 3]]], np.float32)
    again, ends = jax.device_get(jax.jit(lambda x, ends: (to_image(to_network(x)), to_image(ends)))(image, ends))
    np.testing.assert_allclose(again, image, atol=1e-6)
    assert ends[0, 0, 0].max() < 1 and ends[0, 0, 1].min() == 0


class Scale(nn.Module):
    """Stands for an encoder or a decoder: what it was given times its one parameter."""

    width: int
    blocks: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        return x * self.param("scale", nn.initializers.ones, ())


def test_a_cycle_joins_the_right_halves(monkeypatch):
    monkeypatch.setattr(translator_cycle, "Encoder", Scale)
    monkeypatch.setattr(translator_cycle, "Decoder", Scale)
    factors = {"encoder_source": 2, "encoder_target": 3, "decoder_source": 5, "decoder_target": 7}
    params = {name: {"scale": np.float32(factor)} for name, factor in factors.items()}
    source, target = (np.random.default_rng(n).random((2 + n, 8, 12, 3), np.float32) for n in (0, 1))

    @jax.jit
    def run(params, source, target):
        return TranslatorCycle().apply({"params": params}, source, target), to_network(source), to_network(target)

    images, x, y = jax.device_get(run(params, source, target))
    expected = {
        "source": x,
        "target": y,
        "source_to_target": x * 2 * 7,
        "target_to_source": y * 3 * 5,
        "source_again": x * 2 * 5,
        "target_again": y * 3 * 7,
        "source_cycle": x * 2 * 7 * 3 * 5,
        "target_cycle": y * 3 * 5 * 2 * 7,
    }
    assert images.keys() == expected.keys()
    for name, image in expected.items():
        np.testing.assert_allclose(images[name], image, rtol=1e-6, err_msg=name)
    assert source_to_target(params) == {"encoder": params["encoder_source"], "decoder": params["decoder_target"]}


def test_a_discriminator_equals_the_original():
    torch = pytest.importorskip("torch")
    net = PatchDiscriminator(width=4)
    image = np.random.default_rng(0).normal(size=(2, 67, 90, 3)).astype(np.float32)
    rng, like = np.random.default_rng(1), jax.eval_shape(net.init, jax.random.key(0), image)["params"]
    params = jax.tree.map(lambda x: rng.normal(0, 0.2, x.shape).astype(np.float32), like)
    torch_kernel = lambda name: torch.from_numpy(params[name]["kernel"].transpose(3, 2, 0, 1).copy())
    x, f = nchw(torch, image), torch.nn.functional
    for n, got in enumerate(jax.jit(net.apply)({"params": params}, image)):
        y = x
        for k in range(4):
            y = f.leaky_relu(f.conv2d(y, torch_kernel(f"scale{n}_conv{k}"), stride=2, padding=1), 0.2)
        last = f"scale{n}_last"
        expected = nhwc(f.conv2d(y, torch_kernel(last), torch.from_numpy(params[last]["bias"])))
        np.testing.assert_allclose(got, expected, atol=1e-4 * np.abs(expected).max())
        x = f.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
        np.testing.assert_allclose(jax.jit(halved)(image) if n == 0 else nhwc(x), nhwc(x), atol=1e-6)


def test_what_it_cannot_take_is_told():
    image = lambda *size: jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    cycle = lambda *images: jax.eval_shape(TranslatorCycle(width=4).init, jax.random.key(0), *images)
    with pytest.raises(ConfigError, match="an image of 6x40: its sizes must be at least 8: "):
        jax.eval_shape(TINY.init, jax.random.key(0), image(6, 40))
    with pytest.raises(ConfigError, match="18x16: its sizes must be at least 8 and multiples of 4"):
        cycle(image(18, 16), image(18, 16))
    with pytest.raises(ConfigError, match="crop both to one size"):
        cycle(image(16, 16), image(16, 20))
    with pytest.raises(ConfigError, match="15x32 at scale 2 of 3: expected 16 at least"):
        judged(PatchDiscriminator(width=4), (60, 128))


def test_bfloat16_images_are_float32():
    net, image = TINY.clone(dtype=jnp.bfloat16), jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
    assert jax.eval_shape(net.apply, shapes(TINY), image).dtype == jnp.float32
    assert "bf16" in str(jax.make_jaxpr(net.apply)(shapes(TINY), image))

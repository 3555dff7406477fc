"""VGG19 against torch's own functions, and its public file."""

import jax
import numpy as np
import pytest
from torch_state import TorchState, drawn_source, nchw, nhwc, variables_of

from segjax.nets.perceptual import CONVS, VGG19
from segjax.verbs import networks
from segjax.weights import layouts, safetensors_io
from segjax.weights.vgg19 import LAYOUT, VGG19_TORCHVISION

NET = VGG19((2, 3, 4, 5, 6))


def test_five_activations_as_torchs():
    torch = pytest.importorskip("torch")
    source = drawn_source(NET, LAYOUT)
    image = np.random.default_rng(0).normal(size=(2, 33, 48, 3)).astype(np.float32)
    found = jax.jit(NET.apply)(variables_of(source, LAYOUT, NET), image)
    net, x, expected = TorchState(torch, source), nchw(torch, image), []
    for indices in CONVS:
        x = net.f.max_pool2d(x, 2, 2) if expected else x
        for index in indices:
            x = torch.relu(net.conv(x, f"features.{index}"))
            expected += [x] if index == indices[0] else []
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, nhwc(b), atol=2e-5)


def test_torchvisions_file(tmp_path):
    """All 19 layers, of which three convolutions and the classifier are left out; with BatchNorm it is another network."""
    source = drawn_source(NET, LAYOUT)
    rest = {f"features.{n}.{leaf}": np.zeros(2, np.float32) for n in (30, 32, 34) for leaf in ("weight", "bias")}
    rest |= {f"classifier.{n}.{leaf}": np.zeros(2, np.float32) for n in (0, 3, 6) for leaf in ("weight", "bias")}
    safetensors_io.write(tmp_path / "vgg19.safetensors", source | rest)
    assert layouts.recognise(source | rest, "x") is VGG19_TORCHVISION
    network = networks.load(tmp_path / "vgg19.safetensors")
    assert network.module == NET
    np.testing.assert_array_equal(network.variables["params"]["features_28"]["bias"], source["features.28.bias"])
    assert not VGG19_TORCHVISION.recognises([*source, *rest, "features.1.weight"])

"""What a stage starts from: a file of a backbone alone leaves the head to be drawn, and any other misfit is told."""

import types

import flax.linen as nn
import jax
import numpy as np
import pytest

from segjax.data import label_spaces
from segjax.errors import WeightsError
from segjax.nets.layers import Conv
from segjax.verbs import variables
from segjax.weights import safetensors_io


class Net(nn.Module):
    num_classes: int = 19

    @nn.compact
    def __call__(self, image, train=False):
        x = Conv(4, name="embed")(Conv(4, name="backbone")(image))
        return {"logits": Conv(self.num_classes, (1, 1), name="classifier")(x)}


def test_parts_that_the_file_lacks_are_drawn(tmp_path):
    path, model = tmp_path / "backbone.safetensors", Net()
    spec = {"model": {"weights": str(path), "classifier": "fresh"}}
    stage = types.SimpleNamespace(model=model, spec=spec, seed=3, name="warm")
    here = safetensors_io.flatten(variables.shapes(model))
    backbone = {name: np.full(leaf.shape, 7, np.float32) for name, leaf in here.items() if "/backbone/" in name}
    start = lambda: safetensors_io.flatten(variables.initial(stage, label_spaces.get("cityscapes19")))

    safetensors_io.write(path, backbone)
    got, drawn = start(), safetensors_io.flatten(model.init(jax.random.key(3), np.zeros((1, 64, 64, 3), np.float32)))
    assert got.keys() == here.keys()
    for name, value in got.items():
        np.testing.assert_array_equal(value, backbone[name] if name in backbone else drawn[name])
    for damage, message in (
        ({**backbone, "params/stem/bias": np.zeros(2, np.float32)}, "unused source keys 1: params/stem/bias"),
        ({"params/backbone/bias": backbone["params/backbone/bias"]}, "without a source 1: params/backbone/kernel"),
    ):
        safetensors_io.write(path, damage)
        with pytest.raises(WeightsError, match=message):
            start()


def test_a_file_of_exactly_this_network_tells_its_outputs_without_another_trace(tmp_path, monkeypatch):
    path = tmp_path / "whole.safetensors"
    whole = {name: np.zeros(leaf.shape, np.float32) for name, leaf in safetensors_io.flatten(variables.shapes(Net())).items()}
    safetensors_io.write(path, whole, {"label_space": "cityscapes19"})
    with monkeypatch.context() as patch:
        patch.setattr(variables, "classifier_axes", lambda _: pytest.fail("traced"))
        assert variables.outputs_of(path, Net()) == (19, "cityscapes19")
    assert variables.outputs_of(path, Net(num_classes=11)) == (19, "cityscapes19")

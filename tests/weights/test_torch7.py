"""Torch7 graphs: places as keys, dropout folded into the BatchNorm before it, clear errors. The real network is in test_tables.py."""

import builtins
import struct

import numpy as np
import pytest

from segjax.errors import WeightsError
from segjax.weights import torch7

torchfile = pytest.importorskip("torchfile")


def _node(kind, **fields):
    return torchfile.TorchObject(f"nn.{kind}".encode(), {key.encode(): value for key, value in fields.items()})


def _norm(epsilon=1e-3):
    return _node(
        "SpatialBatchNormalization", eps=epsilon, weight=np.full(2, 3.0, np.float32), bias=np.ones(2, np.float32), running_mean=np.zeros(2)
    )


def _read(monkeypatch, *modules):
    graph = _node("Sequential", modules=[_node("Identity"), _node("Sequential", modules=list(modules))])
    monkeypatch.setattr(torchfile, "load", lambda path: graph)
    return torch7.read("net.t7")


def test_keys_are_places_and_the_factor_is_folded(monkeypatch):
    convolution = _node("SpatialConvolution", weight=np.ones((2, 2, 1, 1)), bias=None, gradWeight=np.ones(3))
    arrays, epsilon = _read(monkeypatch, convolution, _norm(), _node("SpatialDropout", p=0.25), _norm())
    assert epsilon == 1e-3
    names = ("weight", "bias", "running_mean")
    assert sorted(arrays) == sorted(["1.0.weight", *(f"1.{place}.{name}" for place in (1, 3) for name in names)])
    np.testing.assert_array_equal(arrays["1.1.weight"], [2.25, 2.25])
    np.testing.assert_array_equal(arrays["1.1.bias"], [0.75, 0.75])
    np.testing.assert_array_equal(arrays["1.3.weight"], [3, 3])


def test_a_dropout_that_folds_nowhere_and_mixed_epsilons_are_errors(monkeypatch):
    with pytest.raises(WeightsError, match=r"net\.t7: a dropout after PReLU at 1\.1: its evaluation factor 0\.9"):
        _read(monkeypatch, _norm(), _node("PReLU", weight=np.ones(1)), _node("SpatialDropout", p=0.1))
    with pytest.raises(WeightsError, match=r"epsilons \[1e-05, 0\.001\]"):
        _read(monkeypatch, _norm(), _norm(1e-5))


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "cut.t7"
    for data in (b"", struct.pack("<iii", 4, 1, 3) + b"V 1" + struct.pack("<i", 13) + b"nn.Sequential", struct.pack("<i", 99)):
        path.write_bytes(data)
        with pytest.raises(WeightsError, match=r"cut\.t7: not a complete Torch7 network"):
            torch7.read(path)


def test_a_missing_package_names_the_command(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **kwargs):
        if name == "torchfile":
            raise ImportError(name)
        return real(name, *rest, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(WeightsError, match=r"pip install 'segjax\[convert\]'"):
        torch7.read("net.t7")

"""A network's arrays under their public names, drawn for a test, and torch's own functions on them: the oracle where no golden exists."""

import numpy as np

from segjax.verbs.variables import shapes
from segjax.weights import safetensors_io, walk


def drawn_source(model, layout, seed=0):
    """Arrays under the names of `layout` for `model`: kernels of norm about 1, positive variances, no value at its default."""
    rng = np.random.default_rng(seed)
    like = {path: np.broadcast_to(np.float32(0), leaf.shape) for path, leaf in safetensors_io.flatten(shapes(model)).items()}
    source = {}
    for key, value in sorted(walk.to_source(like, layout).items()):
        shape, last = value.shape, key.rsplit(".", 1)[-1]
        if len(shape) > 1:
            array = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
        else:
            array = rng.uniform(0.5, 1.5, shape) if last in ("weight", "running_var") else rng.normal(0, 0.3, shape)
        source[key] = array.astype(np.float32)
    return source


def variables_of(source, layout, model):
    """The same as a network's variables, and that they come back bit for bit."""
    flat = walk.to_segjax(source, layout, safetensors_io.flatten(shapes(model)))
    back = walk.to_source(flat, layout)
    assert {key: value.tobytes() for key, value in back.items()} == {key: value.tobytes() for key, value in source.items()}
    return {"params": {}, "batch_stats": {}} | safetensors_io.unflatten(flat)


class TorchState:
    """Layers of torch by the keys of a source; images are NCHW tensors."""

    def __init__(self, torch, source):
        self.torch, self.f = torch, torch.nn.functional
        self.arrays = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in source.items()}

    def conv(self, x, key, stride=1, padding=None, dilation=1):
        """A convolution that keeps the size at stride 1 unless told otherwise."""
        weight = self.arrays[f"{key}.weight"]
        padding = dilation * (weight.shape[-1] // 2) if padding is None else padding
        return self.f.conv2d(x, weight, self.arrays.get(f"{key}.bias"), stride, padding, dilation)

    def norm(self, x, key):
        """BatchNorm by running statistics."""
        return self.f.batch_norm(x, *(self.arrays[f"{key}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")))

    def bottleneck(self, x, key, stride=1, dilation=1, stride_in_1x1=True):
        """ResNet's, with a projection where the source has one."""
        relu, has = self.torch.relu, f"{key}.downsample.0.weight" in self.arrays
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        y = relu(self.norm(self.conv(x, f"{key}.conv1", first), f"{key}.bn1"))
        y = relu(self.norm(self.conv(y, f"{key}.conv2", second, dilation=dilation), f"{key}.bn2"))
        y = self.norm(self.conv(y, f"{key}.conv3"), f"{key}.bn3")
        return relu(y + (self.norm(self.conv(x, f"{key}.downsample.0", stride), f"{key}.downsample.1") if has else x))


def nchw(torch, image):
    return torch.from_numpy(np.moveaxis(np.array(image, np.float32), -1, 1).copy())


def nhwc(tensor):
    return np.moveaxis(tensor.numpy(), 1, -1)

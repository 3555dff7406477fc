"""One checkpoint of the folder of goldens: what it holds, the network that it describes, and the outputs that its own code gave."""

import json
import pathlib
import re

import numpy as np

from segjax.verbs import build, variables
from segjax.weights import layouts, safetensors_io, sources, walk


class Golden:
    """public: the layout that recognises it. spec: the network that it describes. arrays: golden.npz, images in NHWC. facts: arrays.json.

    path: a checkpoint file, or a folder in a hub's layout, beside (or with) golden.npz and arrays.json.
    """

    def __init__(self, path: pathlib.Path, *, branch: str = "model"):
        self.path, self.branch = path, branch
        checkpoint = sources.read(path, branch=branch)
        self.source, self.config = checkpoint.arrays, checkpoint.config
        self.public = layouts.recognise(self.source, str(path))
        self.spec = self.public.model(self.source, self.config)
        where = self._arrays_in()
        self.arrays = {key: x.transpose(0, 2, 3, 1) if x.ndim == 4 else x for key, x in np.load(where / "golden.npz").items()}
        self.facts = json.loads((where / "arrays.json").read_text())

    def _arrays_in(self) -> pathlib.Path:
        """The folder of golden.npz and arrays.json."""
        return self.path if self.path.is_dir() else self.path.parent

    def net(self, **changes):
        """The described network, with some arguments changed."""
        return build.resolve({**self.spec, **changes}, str(self.path))

    def shapes(self, net):
        """Flat path -> ShapeDtypeStruct of its variables."""
        return safetensors_io.flatten(variables.shapes(net))

    def convert(self, net) -> dict[str, np.ndarray]:
        """The checkpoint as flat segjax arrays for `net`, strictly."""
        return walk.to_segjax(self.source, self.public.layout(self.source), self.shapes(net), name=str(self.path))

    def variables(self, net):
        """The same, nested."""
        return safetensors_io.unflatten(self.convert(net))

    def check(self, name: str, got, atol: float | None = None):
        """`got` is the stored array within its own tolerance (or within atol)."""
        got = np.asarray(got, np.float32)
        assert got.shape == self.arrays[name].shape, f"{name}: {got.shape}, expected {self.arrays[name].shape}"
        np.testing.assert_allclose(got, self.arrays[name], rtol=0, atol=self.facts[name]["atol"] if atol is None else atol, err_msg=name)

    def check_half(self, name: str, got, share: float = 3e-2):
        """`got`, computed in bfloat16, differs from the stored array by at most `share` of its largest value."""
        self.check(name, got, atol=share * float(np.abs(self.arrays[name]).max()))

    def check_the_way_back(self, ignored=(r".*\.num_batches_tracked",)):
        """Converted there and back every tensor has its bytes again; what is lost matches `ignored`; and again there, nothing changed."""
        flat = self.convert(self.net())
        back = walk.to_source(flat, self._form(flat))
        lost = [key for key in self.source if key not in back and not any(re.fullmatch(pattern, key) for pattern in ignored)]
        assert not lost and set(back) <= set(self.source), (lost, sorted(set(back) - set(self.source)))
        for key, value in back.items():
            source = self.source[key]
            assert value.shape == source.shape, key
            assert value.astype(source.dtype).tobytes() == np.asarray(source, order="C").tobytes(), key
        again = walk.to_segjax(back, self.public.layout(back), self.shapes(self.net()))
        assert set(again) == set(flat) and all(np.array_equal(again[path], flat[path]) for path in flat)

    def _form(self, flat):
        """The form that was read where the layout keeps its name, else the one that the paths tell: as `networks.to_public` does."""
        name = self.public.layout(self.source).name
        return next((form for form in self.public.forms if form.name == name), None) or self.public.layout(flat)

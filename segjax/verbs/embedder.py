"""A CLIP over many images or texts: decoded ahead in threads, batched, compiled once, spread over the devices of every process."""

import collections
import concurrent.futures
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from segjax.data.clip_images import centre_square, stretched
from segjax.data.files import read_image
from segjax.errors import ConfigError, WeightsError
from segjax.generation.tokens import Tokenizer
from segjax.nets.apply import to_float
from segjax.nets.clip import CLIP, normalized
from segjax.runtime import mesh as meshes
from segjax.verbs import networks
from segjax.verbs.progress import progress


class Embedder:
    """network: an opened CLIP. batch_size: at least; rounded up to a multiple of the devices. tokenizer: folder of its files.

    Several processes call the same methods with the same arguments: each loads its rows of every batch and gets all results.
    WeightsError: the network is no whole CLIP; the tokenizer (opened with the first text) is missing or has words that the network lacks.
    """

    def __init__(self, network: networks.Network, *, batch_size: int, tokenizer: "str | os.PathLike", name: str):
        if not isinstance(network.module, CLIP):
            raise WeightsError(f"{name}: is a {type(network.module).__name__}, expected a CLIP with both towers")
        self._model, self._folder, self._name = network.module, tokenizer, name
        self._mesh = mesh = meshes.make_mesh()
        everywhere = meshes.replicated(mesh)
        whole = {"params": {}, "batch_stats": {}, **network.variables}
        self._variables = jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(everywhere, np.asarray(leaf)), whole)
        self._batch_size = -(-batch_size // mesh.size) * mesh.size
        self._tokens: Tokenizer | None = None
        self._encode_image = jax.jit(self._image_vectors, out_shardings=everywhere)
        self._encode_text = jax.jit(self._text_vectors, out_shardings=everywhere)
        self._encode_dense = jax.jit(self._dense_similarity, out_shardings=everywhere)

    @property
    def size(self) -> int:
        """Side of the square images that the network was trained on."""
        return self._model.visual.image_size

    def dense_size(self, chosen: tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) of the images under `dense`, from the chosen (width, height) or None for the network's square.

        ConfigError: no multiple of the stride.
        """
        width, height = chosen or (self.size, self.size)
        stride = self._model.visual.stride
        if height % stride or width % stride:
            raise ConfigError(f"--dense-size={width}x{height}: {self._name} needs multiples of {stride} pixels")
        return height, width

    @property
    def scale(self) -> float:
        """What the network multiplies cosines with before the softmax."""
        return float(np.exp(np.asarray(self._variables["params"]["logit_scale"])))

    def images(self, paths: Sequence[pathlib.Path]) -> np.ndarray:
        """Vectors of length 1 [N,E] float32. DataError names a damaged image."""
        load = lambda path: centre_square(read_image(path), self.size)
        found = list(self._over("images", paths, load, lambda batch: self._encode_image(self._variables, batch)))
        return np.stack([vector for _, vector in found])

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Vectors of length 1 [N,E] float32."""
        rows = list(self.tokenizer(texts))
        found = list(self._over("texts", rows, lambda row: row, lambda batch: self._encode_text(self._variables, batch)))
        return np.stack([vector for _, vector in found])

    def dense(self, paths: Sequence[pathlib.Path], size: tuple[int, int], words: np.ndarray) -> Iterator[tuple[pathlib.Path, np.ndarray]]:
        """Cosine of every location with the vectors `words` [S,E], image by image: (path, float32 [h,w,S]); images stretched to `size`."""
        load = lambda path: stretched(read_image(path), size)
        yield from self._over("dense", paths, load, lambda batch: self._encode_dense(self._variables, batch, words))

    @property
    def tokenizer(self) -> Tokenizer:
        """Opened at the first use."""
        if self._tokens is None:
            text = self._model.text
            self._tokens = Tokenizer(self._folder, context=text.context_length)
            if self._tokens.vocab_size > text.vocab_size:
                raise WeightsError(
                    f"{self._folder}: a tokenizer of {self._tokens.vocab_size} tokens, and {self._name} knows {text.vocab_size}: "
                    "name the folder of its own with --tokenizer"
                )
        return self._tokens

    def _image_vectors(self, variables, image):
        seen: Any = self._model.apply(variables, to_float(image), method="encode_image")
        return normalized(seen["projected"])

    def _text_vectors(self, variables, ids):
        read: Any = self._model.apply(variables, ids, method="encode_text")
        return normalized(read["projected"])

    def _dense_similarity(self, variables, image, words):
        located: Any = self._model.apply(variables, to_float(image), method="encode_image", dense=True)
        return normalized(located["dense"]) @ words.T

    def _over(self, label: str, items: Sequence[Any], load: Callable, run: Callable) -> Iterator[tuple[Any, np.ndarray]]:
        """(item, its row of the result): the next batches are loaded while the device works."""
        with concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, progress(label, len(items)) as advance:
            waiting = collections.deque()
            for batch in self._batches(items, load, pool):
                waiting.append((batch[0], run(meshes.put_batch({label: batch[1]}, self._mesh)[label])))
                if len(waiting) > 1:
                    yield from self._given(waiting.popleft(), advance)
            while waiting:
                yield from self._given(waiting.popleft(), advance)

    def _batches(self, items: Sequence[Any], load: Callable, pool) -> Iterator[tuple[Sequence[Any], np.ndarray]]:
        """The items of each batch and this process's rows of it, the last one filled up with its last item; one batch ahead is loading."""
        share = self._batch_size // jax.process_count()
        own = range(jax.process_index() * share, (jax.process_index() + 1) * share)
        last = len(items) - 1

        def submit(start: int) -> list[concurrent.futures.Future]:
            loading = {index: pool.submit(load, items[index]) for index in {min(start + row, last) for row in own}}
            return [loading[min(start + row, last)] for row in own]

        starts = range(0, len(items), self._batch_size)
        ahead = collections.deque(submit(start) for start in starts[:1])
        for start in starts:
            if start + self._batch_size < len(items):
                ahead.append(submit(start + self._batch_size))
            yield items[start : start + self._batch_size], np.stack([future.result() for future in ahead.popleft()])

    def _given(self, done: tuple[Sequence[Any], jax.Array], advance: Callable[[int], None]) -> Iterator[tuple[Any, np.ndarray]]:
        items, rows = done[0], np.asarray(done[1])
        advance(len(items))
        yield from zip(items, rows, strict=False)

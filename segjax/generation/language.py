"""Texts from a causal language model: prompts in, new tokens out, one dispatch a batch.

One compiled program reads the prompts (prefill) and draws token after token until every text has ended. A text depends on its prompt, the
seed and its own index alone, whatever the batch or the mesh:

- its draws come from `fold_in(key(seed), index)`, its n-th token's from that folded with n;
- a device computes `unit` rows, always, and a prompt is padded to the job's `bucket`: no product ever has another shape. Sums over other
  shapes do differ in the last bit, so another `unit` may, rarely, draw another token.

Parameters are sharded over "fsdp" by the rule of `runtime.mesh` and gathered layer by layer where they are used.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.typing import DTypeLike

from segjax.errors import ConfigError
from segjax.runtime import mesh as meshes
from segjax.typing import Array, Key

SMALLEST_BUCKET = 32


class Sampling(NamedTuple):
    """temperature: 0 takes the likeliest token. top_k: draw among that many (0: all). top_p: draw among the fewest that hold this share."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def check(self) -> "Sampling":
        """Itself. ConfigError: a number out of its range."""
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature={self.temperature}: expected 0 (the likeliest token) or more")
        if self.top_k < 0:
            raise ConfigError(f"top_k={self.top_k}: expected 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p={self.top_p}: expected a share above 0, up to 1 (all tokens)")
        return self


class Text(NamedTuple):
    """tokens: the new ones, without the one that ended them. ended: False where the limit cut them off."""

    tokens: list[int]
    ended: bool


def choose(logits: Array, keys: Key, sampling: Sampling) -> Array:
    """One token int32 [B] for logits float32 [B,V], drawn with each row's own key of `keys` [B].

    As transformers: divided by the temperature, then top-k, then top-p, which always keeps the likeliest.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits, -1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_k == 0 and sampling.top_p == 1:
        return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
    values, ids = lax.top_k(logits, min(sampling.top_k or logits.shape[-1], logits.shape[-1]))
    share = jax.nn.softmax(values)
    values = jnp.where(jnp.cumsum(share, -1) - share < sampling.top_p, values, -jnp.inf)
    place = jax.vmap(jax.random.categorical)(keys, values)
    return jnp.take_along_axis(ids, place[:, None], 1)[:, 0].astype(jnp.int32)


def generator(
    net: Any, mesh: Mesh, shardings: Any, *, new_tokens: int, sampling: Sampling, stop: Sequence[int], suppress: Sequence[int] = ()
) -> Callable[..., tuple[Array, Array]]:
    """The compiled `(variables, ids, lengths, key, indices) -> (tokens [B,new_tokens], ended [B])`, rows over every device of `mesh`.

    net: as `segjax.nets.llama.Llama`. shardings: of the variables. ids int [B,P], of which row b's first lengths[b] (1 or more) are its
    prompt. key: of the seed; indices int [B]. A text ends with its first token of `stop`; what comes after that is 0. suppress: tokens
    that never come.
    """
    stops = jnp.asarray(stop, jnp.int32)
    banned = jnp.zeros(net.vocab_size, bool).at[jnp.asarray(suppress, jnp.int32)].set(True)

    def run(variables, ids, lengths, key, indices):
        keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)

        def draw(logits, number):
            logits = jnp.where(banned, -jnp.inf, logits[:, 0])
            return choose(logits, jax.vmap(lambda key: jax.random.fold_in(key, number))(keys), sampling)

        def ends(token):
            return (token[:, None] == stops).any(-1)

        def going(state):
            number, _, ended, _ = state
            return (number < new_tokens) & ~ended.all()

        def step(state):
            number, tokens, ended, cache = state
            before = lax.dynamic_slice_in_dim(tokens, number - 1, 1, 1)
            out = net.apply(variables, before, cache=cache, last=True)
            token = jnp.where(ended, 0, draw(out["logits"], number))
            tokens = lax.dynamic_update_slice_in_dim(tokens, token[:, None], number, 1)
            return number + 1, tokens, ended | ends(token), out["cache"]

        read = net.apply(variables, ids, jnp.arange(ids.shape[1]) < lengths[:, None], last=True)
        first = draw(read["logits"], jnp.int32(0))
        tokens = jnp.zeros((len(ids), new_tokens), jnp.int32).at[:, 0].set(first)
        state = jnp.int32(1), tokens, ends(first), read["cache"].with_room(new_tokens - 1)
        _, tokens, ended, _ = lax.while_loop(going, step, state)
        return tokens, ended

    rows, whole = meshes.batch_sharding(mesh), meshes.replicated(mesh)
    options = {"xla_gpu_deterministic_ops": True} if mesh.devices.flat[0].platform == "gpu" else None
    return jax.jit(run, in_shardings=(shardings, rows, rows, whole, rows), out_shardings=whole, compiler_options=options)


class Writer:
    """A language model on a mesh, ready to continue prompts.

    unit: texts that a device writes at once. stop, suppress: see `generator`. variables: of `net`, on the host; they are placed once, in
    the compute dtype.
    """

    def __init__(
        self,
        net: Any,
        variables: Mapping[str, Any],
        mesh: Mesh,
        *,
        new_tokens: int,
        sampling: Sampling,
        stop: Sequence[int],
        suppress: Sequence[int] = (),
        unit: int = 8,
    ):
        if new_tokens < 1 or unit < 1:
            raise ConfigError(f"new_tokens={new_tokens}, unit={unit}: expected 1 or more")
        variables = {"params": variables["params"]}
        shardings = meshes.shard_rules(variables, mesh)
        self.net, self.mesh, self.new_tokens, self.stop, self.rows = net, mesh, new_tokens, list(stop), unit * mesh.size
        self._variables = placed(variables, shardings, net.dtype)
        sampling = sampling.check()
        self._run = generator(net, mesh, shardings, new_tokens=new_tokens, sampling=sampling, stop=stop, suppress=suppress)

    def __call__(self, prompts: Sequence[Sequence[int]], indices: Sequence[int], *, seed: int, bucket: int = 0) -> list[Text]:
        """The texts that go on after prompts (token ids), `rows` of them a dispatch. indices: of each, whole numbers below 2^31.

        bucket: the length that prompts are padded to, one for the whole job (`bucket_of` its longest prompt); 0 takes these prompts'.
        ConfigError: an empty prompt, or one too long for the model's context.
        """
        longest = max(map(len, prompts), default=0)
        bucket = bucket or bucket_of(longest)
        if longest > bucket or not all(prompts):
            raise ConfigError(f"prompts of {min(map(len, prompts))} to {longest} tokens: expected 1 to {bucket}")
        self.check_room(longest)
        found: list[Text] = []
        for start in range(0, len(prompts), self.rows):
            found += self._dispatch(prompts[start : start + self.rows], indices[start : start + self.rows], seed, bucket)
        return found

    def check_room(self, tokens: int) -> None:
        """ConfigError: a prompt of so many tokens and the new ones do not fit the model's context."""
        context = self.net.context_length
        if self.net.rope == "dynamic":  # its context is that of the training, which it stretches
            context = int(context * dict(self.net.rope_scaling)["factor"])
        if tokens + self.new_tokens > context:
            raise ConfigError(
                f"a prompt of {tokens} tokens and {self.new_tokens} new ones exceed the model's context of {context}: ask for less"
            )

    def _dispatch(self, prompts, indices, seed: int, bucket: int) -> list[Text]:
        ids, lengths, numbers = np.zeros((self.rows, bucket), np.int32), np.ones(self.rows, np.int32), np.zeros(self.rows, np.int32)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)], lengths[row], numbers[row] = prompt, len(prompt), indices[row]
        ids[len(prompts) :], lengths[len(prompts) :] = ids[0], lengths[0]  # rows to fill up: copies of the first
        numbers[len(prompts) :] = numbers[0]
        rows = meshes.batch_sharding(self.mesh)
        with jax.set_mesh(self.mesh):  # layers read it to keep a kernel that is sharded over "fsdp" whole at its use
            inputs = (_put(ids, rows), _put(lengths, rows), jax.random.key(seed), _put(numbers, rows))
            tokens, ended = jax.device_get(self._run(self._variables, *inputs))
        return [self._text(tokens[row], bool(ended[row])) for row in range(len(prompts))]

    def _text(self, tokens: np.ndarray, ended: bool) -> Text:
        length = int(np.isin(tokens, self.stop).argmax()) if ended else len(tokens)
        return Text(tokens[:length].tolist(), ended)


def bucket_of(tokens: int) -> int:
    """The length to which prompts of up to so many tokens are padded: 32, 64, 128, ..., one compiled program each."""
    bucket = SMALLEST_BUCKET
    while bucket < tokens:
        bucket *= 2
    return bucket


def placed(variables: Mapping[str, Any], shardings: Any, dtype: DTypeLike) -> Any:
    """Host arrays on the devices of their shardings, in the compute dtype; every process has them all and places its own parts."""
    return jax.tree.map(lambda leaf, sharding: _put(np.asarray(leaf).astype(dtype), sharding), dict(variables), shardings)


def _put(array: np.ndarray, sharding: Any) -> Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

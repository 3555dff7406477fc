"""The training state that the methods of this package share."""

from collections.abc import Collection
from typing import Any, Self

import jax
import jax.numpy as jnp
import optax
from flax import struct

from segjax.errors import WeightsError
from segjax.typing import Array, Key


class TrainState(struct.PyTreeNode):
    """Everything that a step changes, as one pytree.

    step: int32 scalar, the number of finished steps. key: typed PRNG key, constant; a step draws from `step_key()`.
    params, batch_stats: the student. opt_state: of the optimizer. ema_params, ema_batch_stats: the teacher, None without one; of a teacher
    that shares parts of the network with the student (names at the top of both), the other parts alone.
    predicts: "teacher" or "student", whose answers count (predictions and exported weights); there is no choice without a teacher.
    """

    step: Array
    key: Key
    params: Any
    batch_stats: Any
    opt_state: Any
    ema_params: Any = None
    ema_batch_stats: Any = None
    predicts: str = struct.field(pytree_node=False, default="teacher")

    @classmethod
    def create(
        cls,
        key: Key,
        variables: dict,
        optimizer: optax.GradientTransformation,
        *,
        ema: bool = False,
        predicts: str = "teacher",
        fixed: Collection[str] = (),
        shared: Collection[str] = (),
    ) -> Self:
        """State at step 0 from `{"params", "batch_stats"}` (the second may be absent); `ema` adds a teacher, a copy.

        fixed: parts that never learn, so the optimizer has no state of them. shared: parts of which the teacher has no copy.
        """
        params, batch_stats = variables["params"], variables.get("batch_stats", {})
        copied = lambda tree: jax.tree.map(jnp.copy, without(tree, shared)) if ema else None
        return cls(
            step=jnp.zeros((), jnp.int32),
            key=key,
            params=params,
            batch_stats=batch_stats,
            opt_state=optimizer.init(without(params, fixed)),
            ema_params=copied(params),
            ema_batch_stats=copied(batch_stats),
            predicts=predicts,
        )

    @property
    def variables(self) -> dict:
        """The student as `model.apply` takes it."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def ema_variables(self) -> dict:
        """What predicts, as `model.apply` takes it: the teacher, or the student when there is none or `predicts` says so."""
        if self.ema_params is None or self.predicts == "student":
            return self.variables
        return self.teacher

    @property
    def teacher(self) -> dict:
        """The teacher as `model.apply` takes it, with what it shares."""
        return {"params": {**self.params, **self.ema_params}, "batch_stats": {**self.batch_stats, **self.ema_batch_stats}}

    def step_key(self) -> Key:
        """The key of this step: a function of (seed, step) alone, so a resumed run draws what the unbroken one would have."""
        return jax.random.fold_in(self.key, self.step)

    def with_variables(self, variables: dict) -> Self:
        """This state with pretrained `{"params", "batch_stats"}` in the student and, where there is one, in the teacher.

        Values are cast to the state's dtypes. Without "batch_stats" the statistics stay. Raises WeightsError that lists missing,
        unexpected and misshapen names. The result may alias `variables`: copy before donating (the training loop does).
        """
        params = _graft("params", self.params, variables["params"])
        batch_stats = self.batch_stats
        if "batch_stats" in variables:
            batch_stats = _graft("batch_stats", self.batch_stats, variables["batch_stats"])
        changed = self.replace(params=params, batch_stats=batch_stats)
        if self.ema_params is None:
            return changed
        return changed.replace(ema_params=parts_of(params, self.ema_params), ema_batch_stats=parts_of(batch_stats, self.ema_batch_stats))


def parts_of(tree: dict[str, Any], copy: dict[str, Any]) -> dict[str, Any]:
    """The parts of the student's variables of which the teacher has a copy."""
    return {name: tree[name] for name in copy}


def without(tree: dict[str, Any], parts: Collection[str]) -> dict[str, Any]:
    """Variables without the parts of these names at their top."""
    return {name: part for name, part in tree.items() if name not in parts}


def path_name(path) -> str:
    """A jax key path as text: `params/conv/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _graft(kind: str, old, new):
    old_leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(old)}
    new_leaves = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(new)}
    missing = sorted(old_leaves.keys() - new_leaves.keys())
    unexpected = sorted(new_leaves.keys() - old_leaves.keys())
    shapes = [
        f"{name} {tuple(new_leaves[name].shape)} for {tuple(old_leaves[name].shape)}"
        for name in sorted(old_leaves.keys() & new_leaves.keys())
        if tuple(new_leaves[name].shape) != tuple(old_leaves[name].shape)
    ]
    if missing or unexpected or shapes:
        found = (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes))
        listed = "; ".join(f"{what} {len(n)}: {', '.join(n[:5])}{' ...' if len(n) > 5 else ''}" for what, n in found if n)
        raise WeightsError(f"{kind} do not fit the network ({listed}): choose the weights of this architecture and class count")
    return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.asarray(new_leaves[path_name(path)], leaf.dtype), old)

"""The other side of `segjax bench --against=torch`: the same work in a process of its own, asked for chunks of steps in turn with ours."""

import contextlib
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np

import segjax
from segjax.errors import ConfigError, SegjaxError
from segjax.verbs.bench_runner import Chunk, Runner, check
from segjax.verbs.workloads import Arrays, Workload
from segjax.weights import safetensors_io

PEERS = pathlib.Path(segjax.__file__).resolve().parent.parent / "scripts" / "peers"
"""The yardsticks are no part of the package: torch is imported nowhere in segjax."""


class PeerEnded(SegjaxError):
    """The other side is gone: memory, a missing package, a fault of its own."""


def available(python: str = "") -> None:
    """ConfigError: this segjax was installed without its scripts, or there is no torch for them."""
    if not (PEERS / "serve.py").is_file():
        raise ConfigError(
            "--against=torch works from a checkout of segjax, whose scripts/peers hold the torch side: clone it and pip install -e ."
        )
    if not python and importlib.util.find_spec("torch") is None:
        raise ConfigError(
            "--against=torch: torch is not installed here: pip install torch, or name a Python that has it with --peer-python=PATH"
        )


class Peer:
    """A peer that is getting ready: it compiles its variants, while we compile ours. `meet` it before its first steps.

    about: versions, the variants that it tried, by milliseconds, and what those said that failed.
    """

    def __init__(self, workload: Workload, sets: list[Arrays], python: str = ""):
        self.folder, self.about, self.gate = tempfile.TemporaryDirectory(), {}, {}
        place = pathlib.Path(self.folder.name)
        (place / "sizes.json").write_text(json.dumps(dict(workload.sizes)))
        arrays: dict[str, Any] = {f"{n}/{name}": x for n, each in enumerate(sets) for name, x in each.items()}
        np.savez(place / "inputs.npz", **arrays)
        command = [python or sys.executable, str(PEERS / "serve.py"), workload.peer, str(place)]
        environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}  # else torch's idle threads spin and slow everybody
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)

    def meet(self, runner: Runner) -> None:
        """Holds our answer against its own, then lets it time its variants while we rest. SegjaxError: it died, or the numbers differ."""
        self.about = self._answer()
        self.gate = self._gate(runner, pathlib.Path(self.folder.name))
        self.about |= self._ask("choose")

    def _gate(self, runner: Runner, place: pathlib.Path) -> dict[str, float]:
        """Takes over the peer's weights, if it has any, and holds our answer to the first inputs against its own."""
        workload, carry = runner.workload, runner.first
        if workload.adopt is not None:
            carry = workload.adopt(carry, safetensors_io.read(place / "weights.safetensors")[0])
            runner.carry = runner._own(carry)
        compared = workload.compared or (lambda carry, inputs: runner.compiled(runner._own(carry), inputs)[1])
        with np.load(place / "out.npz") as arrays:
            return check(compared(carry, runner.inputs[0]), dict(arrays), workload.tolerance, "torch")

    def steps(self, count: int) -> Chunk:
        """Seconds a step of a chunk of `count` steps there."""
        return Chunk(*self._ask(str(count))["seconds"])

    def _ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin
        try:
            self.process.stdin.write(f"{line}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died, as its missing answer says
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise PeerEnded(f"the torch side ended with exit code {self.process.wait()}: its own message stands above")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process and removes what it was given."""
        if self.process.stdin:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
        self.process.wait()
        self.folder.cleanup()


def ratio(ours: list[float], theirs: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """(ratio, low, high): median of theirs over median of ours, and its 95 % interval over draws of the pairs with replacement."""
    pairs = np.asarray([ours, theirs], np.float64)
    index = np.random.default_rng(0).integers(0, pairs.shape[1], (draws, pairs.shape[1]))
    drawn = np.median(pairs[1][index], 1) / np.median(pairs[0][index], 1)
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(np.median(pairs[1]) / np.median(pairs[0])), float(low), float(high)

"""Checkpoints that are whole or absent: written behind the step, hashed, verified on the way back.

Layout: DIR/STEP/state/ (orbax) and DIR/STEP/manifest.json (sha256 of every file; shape and dtype of every array). Both are made in
DIR/STEP.tmp, which one rename turns into DIR/STEP: what a kill leaves behind is always a .tmp folder, never half a checkpoint.
DIR is a POSIX file system that every process sees.
"""

import hashlib
import json
import os
import pathlib
import shutil
import threading
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from segjax.errors import ConfigError, SegjaxError, WeightsError
from segjax.runtime import peers
from segjax.runtime.log import say
from segjax.runtime.state import path_name

MANIFEST = "manifest.json"


class Checkpoints:
    """The saves of one run. Opening reads nothing and changes nothing: `sweep` and `save` are for the one run that owns DIR."""

    def __init__(self, directory: str | os.PathLike, keep: int = 3):
        if keep < 1:
            raise ConfigError(f"keep={keep}: keep at least one checkpoint")
        self.directory = pathlib.Path(directory).absolute()
        self.keep = keep
        self._good: set[int] = set()  # written or restored here
        self._bad: set[int] = set()  # found damaged here
        self._thread: threading.Thread | None = None
        self._error: SegjaxError | None = None

    def steps(self) -> list[int]:
        """Every committed step, oldest first, damaged ones included."""
        if not self.directory.is_dir():
            return []
        return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdecimal() and p.is_dir())

    def sweep(self) -> None:
        """Removes the .tmp folders that a killed save left behind."""
        if jax.process_index() == 0 and self.directory.is_dir():
            for left in self.directory.glob("*.tmp"):
                shutil.rmtree(left, ignore_errors=True)

    def save(self, step: int, state: Any) -> None:
        """Starts to write `state` as `step`; returns once the values have left the device (they may then be donated).

        Waits for the save before it. A step that this object wrote or restored is not written again. Old steps go only after the
        new one is committed. Raises SegjaxError when this or the last save could not be written; older steps stay.
        """
        self.wait()
        if step in self._good:
            return
        temporary = self.directory / f"{step}.tmp"
        leaves = _leaves(state)
        if any(device.platform == "cpu" for leaf in jax.tree.leaves(state)[:1] for device in leaf.devices()):
            state = _copy(state)  # orbax reads CPU buffers in place, and the next step is free to write into them
        writer = ocp.StandardCheckpointer()
        try:
            if jax.process_index() == 0:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
            writer.save(temporary / "state", state)
        except Exception as error:
            raise self._failed(step, temporary, error) from error
        self._thread = threading.Thread(target=self._finish, args=(step, temporary, writer, leaves), name=f"checkpoint-{step}")
        self._thread.start()

    def wait(self) -> None:
        """Blocks until the save in flight is committed. Raises SegjaxError when it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raises the SegjaxError of a save that failed behind the loop. Does not block."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def restore(self, abstract_state: Any, step: int | None = None) -> tuple[Any, int]:
        """(state, step) of the newest good checkpoint, or of `step` alone.

        abstract_state: ShapeDtypeStructs with shardings, which need not be those of the save. A damaged checkpoint is skipped with
        one printed line. Many processes share the hashing, and all skip what one of them finds damaged. Raises WeightsError when
        none is good, when `step` is damaged, or when the arrays' names, shapes or dtypes are not those of `abstract_state`.
        """
        self.wait()
        candidates = self.agreed_steps()[::-1] if step is None else [step]
        for candidate in candidates:
            try:
                manifest = self._verify_together(candidate)
                _compare(self.directory / str(candidate), manifest["leaves"], _leaves(abstract_state))
                with ocp.StandardCheckpointer() as reader:
                    state = reader.restore(self.directory / str(candidate) / "state", abstract_state)
            except (Misfit, MemoryError, jax.errors.JaxRuntimeError):  # the files are good; too little memory, say, is no damage
                raise
            except Exception as error:
                if step is not None:
                    raise WeightsError(_line(error)) from error
                self._bad.add(candidate)
                say(f"checkpoint {candidate} is damaged and skipped: {_line(error)}")
                continue
            self._good.add(candidate)
            return state, candidate
        found = f"{len(candidates)} damaged ({', '.join(map(str, candidates))})" if candidates else "none"
        raise WeightsError(f"no good checkpoint in {self.directory}, {found}: restore the folder from a copy, or remove it to start afresh")

    def agreed_steps(self) -> list[int]:
        """`steps` as the first process sees them. SegjaxError in a process that does not come to see the same."""
        first = peers.exchange(self.steps())[0]
        if not peers.wait_until(lambda: self.steps() == first):
            raise SegjaxError(f"process 0 sees the saves {first} in {self.directory}, process {jax.process_index()} sees {self.steps()}")
        return first

    def _verify_together(self, step: int) -> dict[str, Any]:
        """`verify`, each process hashing some of the files; WeightsError in all of them where one raises it."""
        manifest, problem = {}, ""
        try:
            manifest = self.verify(step, (jax.process_index(), jax.process_count()))
        except WeightsError as error:
            problem = str(error)
        if problems := list(filter(None, peers.exchange(problem))):
            raise WeightsError(problems[0])
        return manifest

    def verify(self, step: int, part: tuple[int, int] = (0, 1)) -> dict[str, Any]:
        """The manifest of `step` after every file's sha256 was found equal. Raises WeightsError that names the file.

        part: (i, n) hashes every n-th file, from the i-th; all must be there.
        """
        folder = self.directory / str(step)
        path = folder / MANIFEST
        try:
            text = json.loads(path.read_bytes())
            manifest, digest = text["manifest"], text["sha256"]
        except FileNotFoundError:
            raise WeightsError(f"{path} is missing: the checkpoint is not whole") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{path} cannot be read ({_line(error)})") from error
        if digest != _digest(manifest) or manifest["step"] != step:
            raise WeightsError(f"{path} was changed after it was written")
        for number, (name, (size, expected)) in enumerate(manifest["files"].items()):
            file = folder / name
            if not file.is_file():
                raise WeightsError(f"{file} is missing")
            if file.stat().st_size != size:
                raise WeightsError(f"{file} has {file.stat().st_size} bytes, written were {size}")
            if number % part[1] == part[0] and _sha256(file) != expected:
                raise WeightsError(f"{file} was changed after it was written (sha256)")
        return manifest

    def _finish(self, step: int, temporary: pathlib.Path, writer: ocp.StandardCheckpointer, leaves: dict) -> None:
        try:
            writer.wait_until_finished()
            writer.close()
            if jax.process_index() == 0:
                self._commit(step, temporary, leaves)
            self._good.add(step)
            self._bad.discard(step)
            if jax.process_index() == 0:
                self._prune()
        except Exception as error:
            self._error = self._failed(step, temporary, error)

    def _commit(self, step: int, temporary: pathlib.Path, leaves: dict) -> None:
        files = sorted(p for p in (temporary / "state").rglob("*") if p.is_file())
        hashes = {str(p.relative_to(temporary)): [p.stat().st_size, _sha256(p)] for p in files}
        manifest = {"step": step, "files": hashes, "leaves": leaves}
        with open(temporary / MANIFEST, "w") as file:
            json.dump({"sha256": _digest(manifest), "manifest": manifest}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        final = self.directory / str(step)
        self._remove(final)  # a damaged save of the same step
        os.rename(temporary, final)
        handle = os.open(self.directory, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

    def _prune(self) -> None:
        good = [step for step in self.steps() if step not in self._bad]
        for step in self.steps():
            if step < good[-self.keep :][0]:
                self._remove(self.directory / str(step))

    def _remove(self, folder: pathlib.Path) -> None:
        if folder.exists():
            doomed = folder.with_name(f"{folder.name}.old.tmp")
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(folder, doomed)
            shutil.rmtree(doomed, ignore_errors=True)

    def _failed(self, step: int, temporary: pathlib.Path, error: Exception) -> SegjaxError:
        shutil.rmtree(temporary, ignore_errors=True)
        intact = ", ".join(map(str, self.steps())) or "none"
        return SegjaxError(
            f"the checkpoint of step {step} could not be written to {self.directory} ({_line(error)}); saved steps that stay: {intact}. "
            "Free space or choose another --workdir; the same command goes on from there"
        )


class Misfit(WeightsError):
    """A whole checkpoint of another network or optimizer: no older one will fit better."""


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def _leaves(tree: Any) -> dict[str, list]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_name(path): [list(leaf.shape), str(leaf.dtype)] for path, leaf in leaves}


def _compare(folder: pathlib.Path, saved: dict[str, list], wanted: dict[str, list]) -> None:
    differences = [f"{name} is not in the checkpoint" for name in wanted.keys() - saved.keys()]
    differences += [f"{name} is not in this run" for name in saved.keys() - wanted.keys()]
    differences += [f"{n} is {saved[n]} and should be {wanted[n]}" for n in saved.keys() & wanted.keys() if saved[n] != wanted[n]]
    if differences:
        listed = "; ".join(sorted(differences)[:5]) + ("; ..." if len(differences) > 5 else "")
        raise Misfit(
            f"{folder} is of another network or optimizer, {len(differences)} differences: {listed}. Use the config it was made with"
        )


def _digest(manifest: dict) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _line(error: BaseException) -> str:
    """The first line of an error, cut to what a terminal shows."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:300]

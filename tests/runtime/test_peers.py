"""What the processes of a run tell each other: three of them as threads of one, whose end is only noted."""

import queue
import socket
import threading
import time

import jax
import pytest

from segjax.errors import ConfigError, SegjaxError, WeightsError
from segjax.runtime import links, peers, workdir
from segjax.runtime.checkpoint import Checkpoints
from segjax.runtime.links import Link


class Here(peers.Peers):
    """A process that does not end, but puts (its number, exit code, what it would print) into `ended`."""

    def __init__(self, ended: queue.Queue, *arguments):
        self.ended = ended
        super().__init__(*arguments)

    def _end(self, code, text):
        with self._state:
            if self._ending:
                return
            self._ending = True
        self.ended.put((self.index, code, text))

    def _exit(self, code, linger=0.0):
        self.ended.put((self.index, code, ""))


def pair() -> tuple[Link, Link]:
    """Both ends of a connection."""
    with links.listen(0) as door:
        near = socket.create_connection(("localhost", door.getsockname()[1]))
        return Link(door.accept()[0], 5), Link(near, 5)


@pytest.fixture
def three(monkeypatch):
    """(processes, ended): connected as `meeting` connects them."""
    monkeypatch.setattr(peers, "GRACE_SECONDS", 0.5)
    ended, ends = queue.Queue(), [pair() for _ in range(2)]
    hosts = ["a", "b", "c"]
    first = Here(ended, 0, hosts, {1: ends[0][0], 2: ends[1][0]}, 2.0)
    others = [Here(ended, index, hosts, {0: ends[index - 1][1]}, 2.0) for index in (1, 2)]
    yield [first, *others], ended
    for process in (first, *others):
        process._left.update({0: 0, 1: 0, 2: 0})
        for link in process._links.values():
            link.close()


def together(calls) -> list:
    """What calls in threads of their own return, or raise."""
    found: list = [None] * len(calls)

    def noted(index, call):
        try:
            found[index] = call()
        except SegjaxError as error:
            found[index] = error

    threads = [threading.Thread(target=noted, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    return found


def test_every_process_gets_what_each_gives(three):
    processes, _ = three
    for round in range(3):
        got = together([lambda p=p, r=round: p.exchange([p.index, r]) for p in processes])
        assert got == [[[0, round], [1, round], [2, round]]] * 3


def test_who_is_lost_is_told_once_by_all_others(three):
    processes, ended = three
    begun = time.monotonic()
    processes[2]._known = True  # it is killed: it says nothing
    processes[2]._links[0].close()
    told = sorted(ended.get(timeout=5) for _ in range(2))
    assert [(index, code) for index, code, _ in told] == [(0, 1), (1, 1)] and time.monotonic() - begun < 1.5
    assert all(
        text.startswith("process 2 (c) is lost (its connection closed") and "goes on from the last save" in text for *_, text in told
    )
    assert ended.empty()


def test_one_that_is_silent_is_given_up(three):
    processes, ended = three
    processes[1]._tell = lambda *_, **__: None  # its host hangs: no beat comes
    told = dict((index, text) for index, _, text in (ended.get(timeout=8) for _ in range(3)))
    assert all(told[index].startswith("process 1 (b) is lost (not heard of for 2 s)") for index in (0, 2)), told
    assert told[1].startswith("this process is lost")  # should it come to itself


def test_an_error_of_one_ends_the_others_with_its_code_unless_they_have_their_own(three):
    processes, ended = three
    processes[1].leave(3, "no such file")
    processes[2].leave(2, "a config that none can use")  # within the grace: its own word counts
    told = {index: (code, text) for index, code, text in (ended.get(timeout=5) for _ in range(3))}
    either = {1: (3, "no such file"), 2: (2, "a config that none can use")}
    assert told[0] in [(code, f"process {i} ({'abc'[i]}) stopped with exit code {code}: {text}") for i, (code, text) in either.items()]
    assert told[1] == (3, "") and told[2] == (2, "")


def test_one_that_is_done_is_missed_by_those_that_wait_for_it(three):
    processes, ended = three
    processes[2].leave(0, "")
    first, second = together([lambda p=p: p.exchange(None) for p in processes[:2]])
    assert "process 2 ended while process 0 still works" in str(first) and "process 2 ended" in str(second) and ended.empty()


def test_a_difference_is_named_alike_everywhere(three, monkeypatch):
    processes, _ = three
    facts = {"jax": "0.10.2", "config.steps": "4"}
    given = [facts, facts, {**facts, "config.steps": "5", "the argument --start=x": "given"}]
    current = threading.local()
    monkeypatch.setattr(peers, "exchange", lambda value: current.process.exchange(value))

    class Now:
        def __getattr__(self, name):
            return getattr(current.process, name)

    monkeypatch.setattr(peers, "_current", Now())

    def agree(process):
        current.process = process
        return peers.agree(given[process.index])

    errors = together([lambda p=p: agree(p) for p in processes])
    said = "process 2 (c) has config.steps 5 and process 0 4; the argument --start=x given and process 0 absent: start all with the same"
    assert all(isinstance(error, ConfigError) and str(error).startswith(said) for error in errors), errors
    given[2] = facts
    assert together([lambda p=p: agree(p) for p in processes]) == [None] * 3


@pytest.mark.parametrize("shared", [True, False])
def test_a_folder_that_is_not_the_first_ones_is_noticed(tmp_path, monkeypatch, shared):
    """By its lock when a run begins, and by its saves when one goes on. This is process 1; process 0 has locked its own, saved step 4."""
    (tmp_path / "checkpoints/4").mkdir(parents=True)
    (tmp_path / "lock").write_text("of process 0")
    own = tmp_path if shared else tmp_path / "elsewhere"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(peers, "wait_until", lambda seen: seen())
    monkeypatch.setattr(peers, "exchange", lambda value: ["of process 0" if value == "" else [4], value])

    def begin():
        with workdir.claim(own):
            pass
        return Checkpoints(own / "checkpoints").agreed_steps()

    if shared:
        assert begin() == [4]
        return
    with pytest.raises(ConfigError, match="lock, written by process 0, is not here: --workdir must lie on a file system that every"):
        begin()
    with pytest.raises(SegjaxError, match=r"process 0 sees the saves \[4\] in .*, process 1 sees \[\]"):
        Checkpoints(own / "checkpoints").agreed_steps()


def test_what_one_process_finds_damaged_is_damaged_for_all(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "exchange", lambda value: [value, "4/state/d/1 was changed after it was written (sha256)"])
    saves = Checkpoints(tmp_path)
    monkeypatch.setattr(saves, "verify", lambda step, part: {"leaves": {}})
    with pytest.raises(WeightsError, match="4/state/d/1 was changed"):
        saves.restore({}, step=4)

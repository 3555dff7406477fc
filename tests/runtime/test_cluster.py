"""Who takes part in a run: flags, launchers, and what cannot be; how processes find each other, and what they are told when not."""

import socket
import threading

import pytest

from segjax.errors import ConfigError, SegjaxError
from segjax.runtime import links, peers
from segjax.runtime.cluster import Cluster, find

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[007-9,12],other",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
GIVEN = {"JAX_COORDINATOR_ADDRESS": "host0:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (SLURM, None),  # a task of SLURM may well be a run of its own
        (GIVEN, Cluster("host0:1234", 4, 2)),
        ({**GIVEN, "JAX_COORDINATOR_ADDRESS": "[::1]:1234"}, Cluster("[::1]:1234", 4, 2)),
        ({**SLURM, "SEGJAX_DISTRIBUTED": "1"}, Cluster("node007:61441", 4, 2)),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1", **GIVEN}, Cluster("host0:1234", 4, 2, (1,))),
        ({**SLURM, "SLURM_STEP_TASKS_PER_NODE": "2(x2)", "CUDA_VISIBLE_DEVICES": "3", **GIVEN}, Cluster("host0:1234", 4, 2)),
        ({**GIVEN, "JAX_PROCESS_ID": "", "JOB_COMPLETION_INDEX": "3"}, Cluster("host0:1234", 4, 3)),
        ({"SEGJAX_DISTRIBUTED": "1"}, Cluster(None, None, None)),  # jax knows, or nobody does
        ({"SEGJAX_DISTRIBUTED": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, Cluster(None, 2, 1)),
    ],
)
def test_who_takes_part(environ, expected):
    assert find(environ) == expected


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({**GIVEN, "JAX_NUM_PROCESSES": "two"}, r"JAX_NUM_PROCESSES=two \(--processes\): expected a number of 1 or more"),
        ({**GIVEN, "JAX_NUM_PROCESSES": ""}, r"without --processes \(JAX_NUM_PROCESSES\), and no SLURM"),
        ({**GIVEN, "JAX_PROCESS_ID": "4"}, "--process-id=4 of --processes=4: they are numbered 0 to 3"),
        ({**GIVEN, "JAX_COORDINATOR_ADDRESS": "host0"}, "--coordinator=host0 .*: expected HOST:PORT"),
        ({"JAX_NUM_PROCESSES": "2"}, "--processes=2 without --coordinator=HOST:PORT"),
        ({**SLURM, **GIVEN, "JAX_NUM_PROCESSES": "3"}, "--processes=3 .*, but SLURM says 4"),
        ({**SLURM, **GIVEN, "JAX_PROCESS_ID": "1"}, "--process-id=1 .*, but SLURM says 2"),
    ],
)
def test_what_is_incomplete_or_contradictory(environ, said):
    with pytest.raises(ConfigError, match=said):
        find(environ)


def meeting(count: int, others: list[tuple[int, int]], seconds: float = 10.0, port: int = 0) -> list:
    """What process 0 of `count`, and the others (number, count that it was told), get from looking for each other: links or an error."""
    door, found = links.listen(port), {}
    port = door.getsockname()[1]

    def noted(key, call):
        try:
            found[key] = call()
        except SegjaxError as error:
            found[key] = error

    calls = [lambda: links.gather(door, count, seconds, "host0:1")]
    calls += [lambda i=i, n=n: links.reach([("localhost", port)], i, n, seconds) for i, n in others]
    threads = [threading.Thread(target=noted, args=pair) for pair in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[key] for key in sorted(found)]


def test_processes_find_each_other_and_their_door_is_free_again():
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    (opened, hosts), (second, theirs), (third, _) = meeting(3, [(2, 3), (1, 3)], port=port)
    assert sorted(opened) == [1, 2] and len(hosts) == 3 and theirs == hosts
    opened[2].send("value", value=[1])
    assert second.receive() == {"kind": "value", "value": [1]}
    third.close()
    assert opened[1].receive() is None
    links.listen(port).close()  # as jax's service does, with the links still open


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ([(1, 3)], r"process 1 \(.*\) was started with --processes=3, process 0 with 2"),
        ([(0, 2)], r"two processes have --process-id=0"),
    ],
)
def test_processes_that_contradict_each_other_are_told_so(others, said):
    for error in meeting(2, others):
        assert isinstance(error, ConfigError) and error.args[0].count("\n") == 0
        assert pytest.raises(ConfigError, match=said).matches(error)


def test_nobody_comes_and_nobody_answers():
    (first,) = meeting(4, [], seconds=0.1)
    assert "processes 1, 2, 3 of 4 did not come to host0:1 within 0.1 s" in str(first) and first.code == 1
    door = links.listen(0)
    port = door.getsockname()[1]
    door.close()
    with pytest.raises(SegjaxError, match=rf"process 0 does not answer at localhost:{port} within 0.1 s \(.*refused\)"):
        links.reach([("localhost", port)], 1, 2, 0.1)
    with links.listen(0) as taken, pytest.raises(ConfigError, match=r"cannot be opened \(Address already in use\)"):
        links.listen(taken.getsockname()[1])


def test_a_stranger_at_the_door_is_no_process():
    """One that says nothing of use is sent away, and the process that comes after it is let in."""
    door, found = links.listen(0), []
    address = ("localhost", door.getsockname()[1])
    thread = threading.Thread(target=lambda: found.append(links.gather(door, 2, 10, "")))
    thread.start()
    with socket.create_connection(address) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.recv(10) == b""
    link, _ = links.reach([address], 1, 2, 10)
    thread.join()
    link.close()
    assert sorted(found[0][0]) == [1]


def test_what_answers_in_place_of_process_0_is_told():
    with links.listen(0) as door:
        port = door.getsockname()[1]

        def serve():
            connection, _ = door.accept()
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\n")
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(SegjaxError, match="what answers there is no process of this run"):
            links.reach([("localhost", port)], 1, 2, 0.0)
        thread.join()


def test_a_run_of_one_agrees_with_itself():
    assert peers.current() is None and peers.exchange(3) == [3]
    peers.agree({"jax": "1"})

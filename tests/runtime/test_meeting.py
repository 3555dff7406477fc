"""Two real processes that meet and then wait: one is killed, and the other says so and nothing else."""

import subprocess
import sys

from processes import environment, free_port

WAITS = """
import sys, time
from segjax.runtime import cluster, meeting
meeting.join(cluster.Cluster(sys.argv[1], 2, int(sys.argv[2])), lambda: None)
print("joined", flush=True)
time.sleep(100)
"""


def test_one_that_is_killed_is_named_by_the_other_in_one_line(tmp_path):
    """Of process 0's end `tests/verbs/test_many_processes.py` tells. A temporary folder may have a name too long for a `relay`."""
    (long := tmp_path / ("x" * 100)).mkdir()
    where, env = f"localhost:{free_port()}", environment(tmp_path / "cache") | {"TMPDIR": str(long)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first, second = (subprocess.Popen([sys.executable, "-c", WAITS, where, str(index)], env=env, **pipes) for index in range(2))
    for one in (first, second):
        lines = iter(one.stdout.readline, "")  # Gloo, too, writes there
        assert "joined\n" in lines, one.communicate()[1]
    second.kill()
    said = first.communicate(timeout=60)[1]
    assert first.returncode == 1 and said.count("\n") == 1, said
    assert said.startswith("segjax: process 1 (") and "is lost (its connection closed" in said
    second.communicate()

"""The errors that a person can cause, each with its exit code.

`segjax.cli.main` prints the message alone (no traceback) and exits with `code`. A message is one line that names the file or
key, the value, what was expected and the way out.
"""


class SegjaxError(Exception):
    """A failure with a clear message. Exit code 1."""

    code = 1


class ConfigError(SegjaxError):
    """Wrong usage, unknown key or impossible combination. Exit code 2."""

    code = 2


class DataError(SegjaxError):
    """A data set that is empty, unpaired, unreadable or out of range. Exit code 3."""

    code = 3


class WeightsError(SegjaxError):
    """Weights or a checkpoint that do not fit or are damaged. Exit code 4."""

    code = 4


class Preempted(SegjaxError):
    """Asked to stop, and stopped after a save: the same command goes on. Exit code 75."""

    code = 75

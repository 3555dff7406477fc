"""Flags that several verbs read alike."""

from segjax.errors import ConfigError


def parse_size(text: str, flag: str = "--size") -> tuple[int, int] | None:
    """'1024x512' -> (1024, 512), width first as every flag and message has it; '' -> None. ConfigError for anything else."""
    if not text:
        return None
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{flag}={text}: expected WIDTHxHEIGHT in pixels, e.g. 1024x512")
    return int(parts[0]), int(parts[1])

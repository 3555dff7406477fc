"""Finding the folders of a published layout, with an error that says what was expected, what is there and the way out."""

import pathlib

from segjax.data.label_spaces import nearest
from segjax.errors import DataError


class Layout:
    """The folders below one data set's root. name: the data set, for messages. source: where its files come from, a few words."""

    def __init__(self, name: str, root: "str | pathlib.Path", source: str):
        self.name, self.root, self.source = name, pathlib.Path(root), source
        if not self.root.is_dir():
            raise DataError(f"{name}: root={root} is not a folder: check the path (expected {source})")

    def find(self, *options: str) -> pathlib.Path:
        """The first of `options`, paths below the root, that is a folder. DataError says where one was seen instead."""
        for option in options:
            if (self.root / option).is_dir():
                return self.root / option
        folders = sorted(path for path in self.root.iterdir() if path.is_dir())
        near = [*self.root.absolute().parents[:2], *folders]
        better = next((path for path in near for option in options if (path / option).is_dir()), None)
        way = f"set root={better}" if better else f"download {self.source} and unpack it there"
        there = ", ".join(path.name for path in folders[:8]) + (", ..." if len(folders) > 8 else "")
        raise DataError(
            f"{self.name}: expected {' or '.join(options)} below root={self.root}; folders found there: {there or 'none'}: {way}"
        )

    def choice(self, what: str, value: str, known) -> str:
        """`value`, or ConfigError with the nearest of the known ones."""
        if value not in known:
            raise nearest(f"{self.name} {what}", value, known)
        return value

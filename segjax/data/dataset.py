"""What every data set is: random access by index, a label space, a deterministic repr, and an optional memory of decoded examples."""

import copy

from segjax.data.label_spaces import LabelSpace

Example = dict
"""{"image": uint8 [H,W,3] RGB, "label": uint8 [H,W] train ids with 255 = ignore (absent when unlabelled), "name": str}."""


class Dataset:
    """Random-access examples: `len(ds)`, `ds[i] -> Example`, `ds.label_space`, `ds.labelled`, `ds.unlabelled()`.

    A subclass gives `__len__`, `__repr__` (deterministic) and `_load(index)`. With `cache=True` each example stays in memory once loaded
    (arrays read-only, every worker process with its own copy): worth it when the decoded set fits, as in runs on a CPU.
    """

    label_space: LabelSpace
    labelled: bool = True

    def __init__(self, cache: bool = False):
        self._cache: dict[int, Example] | None = {} if cache else None

    def __len__(self) -> int:
        raise NotImplementedError

    def _load(self, index: int) -> Example:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Example:
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} examples")
        index %= len(self)
        if self._cache is None:
            return self._load(index)
        if index not in self._cache:
            example = self._load(index)
            for value in example.values():
                if hasattr(value, "setflags"):
                    value.setflags(write=False)
            self._cache[index] = example
        return dict(self._cache[index])

    def unlabelled(self) -> "Dataset":
        """The same images without labels. The labels are not merely dropped: they are never read."""
        other = copy.copy(self)
        other.labelled = False
        other._cache = None if self._cache is None else {}
        return other

    def __getstate__(self):
        # A worker process starts with an empty memory: shipping decoded images through a pipe costs more than decoding them.
        return self.__dict__ | {"_cache": None if self._cache is None else {}}

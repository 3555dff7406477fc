"""What can be wrong with a data set, in words: kinds of faults, and one fault with its file, finding, likely cause and fix."""

import dataclasses

KINDS = {
    "unlisted": "data sets that cannot be listed",
    "unpaired": "files without a partner",
    "unreadable": "unreadable files",
    "image_depth": "images deeper than 8 bits",
    "size": "labels of another size than their image",
    "exif": "images turned by their EXIF tag, with labels that have none",
    "label_colour": "labels that are colour pictures",
    "label_depth": "labels deeper than 8 bits",
    "label_jpeg": "labels stored with loss",
    "label_blended": "labels resized with blending",
    "label_ids": "labels with ids out of range",
    "label_palette": "palette labels whose indices are no ids",
    "label_binary": "labels of 0 and 255 alone",
    "label_ignored": "labels that are ignore everywhere",
    "image_mode": "images that are not RGB",
    "set": "the set as a whole",
}
"""Kind of fault -> what several of them are called, in the order of a report."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that is wrong (a run would stop or learn something wrong) or, with wrong=False, a hint.

    file: the file's path, or a name where there is no file; "" for the set. found: what it is or holds; without cause and fix where it is
    a whole message. ids: the raw ids found, if it is about ids.
    """

    kind: str
    file: str
    found: str
    cause: str = ""
    fix: str = ""
    wrong: bool = True
    ids: tuple[int, ...] = ()

    @property
    def line(self) -> str:
        """The whole fault as one line."""
        return ": ".join(filter(None, (self.file, self.found, "; ".join(filter(None, (self.cause, self.fix))))))

"""Imports go down only (docs/ARCHITECTURE.md): floors, import owners, and no torch or TensorFlow anywhere in the package."""

import ast
import pathlib

PACKAGE = pathlib.Path(__file__).resolve().parent.parent / "segjax"
FLOOR = {
    "errors": 0,
    "typing": 0,
    "ops": 0,
    "nets": 1,
    "weights": 1,
    "data": 1,
    "runtime": 2,
    "methods": 3,
    "generation": 3,
    "verbs": 4,
    "cli": 4,
}
OWNERS = {
    "flax.linen": ("nets",),
    "orbax": ("runtime/checkpoint.py",),
    "grain": ("data",),
    "tensorflow_datasets": ("data",),
    "ml_collections": ("verbs", "cli.py"),
}


def _imports(path: pathlib.Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(path: pathlib.Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def violations(files: dict[pathlib.Path, list[str]]) -> list[str]:
    """Every import that goes up, sideways, or past its owner, as one line each."""
    found = []
    for path, imports in files.items():
        room = _room(path)
        if room in ("__init__", "__main__"):
            continue
        for name in imports:
            root = name.split(".")[0]
            if root in ("torch", "tensorflow", "torchvision"):
                found.append(f"{path}: imports {name}")
            for owned, homes in OWNERS.items():
                if (name == owned or name.startswith(owned + ".")) and not any(
                    str(path.relative_to(PACKAGE)).startswith(home) for home in homes
                ):
                    found.append(f"{path}: {owned} belongs to {homes}")
            if root != "segjax" or len(name.split(".")) < 2:
                continue
            other = name.split(".")[1]
            if other not in FLOOR:
                continue
            up = FLOOR[other] > FLOOR[room]
            sideways = FLOOR[other] == FLOOR[room] == 1 and other != room
            between_methods = room == other == "methods"
            if up or sideways or between_methods:
                found.append(f"{path}: {room} imports {name}")
    return found


def test_imports_go_down_only():
    files = {path: list(_imports(path)) for path in PACKAGE.rglob("*.py")}
    assert len(files) > 20
    assert violations(files) == []


def test_the_walk_finds_a_wrong_arrow():
    wrong = {PACKAGE / "ops" / "x.py": ["segjax.nets.enet"], PACKAGE / "nets" / "y.py": ["segjax.data.folders", "torch"]}
    assert len(violations(wrong)) == 3


def test_only_torch_free_pickle_reading():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("load", "loads") and isinstance(node.value, ast.Name):
                assert node.value.id not in ("pickle", "torch"), f"{path}:{node.lineno} executes a pickle"

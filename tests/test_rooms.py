"""A room imports only from rooms below it; neighbours never meet."""

import ast
from pathlib import Path

import minidl

PACKAGE = Path(minidl.__file__).parent
LEVEL = {
    "array": 0,
    "autograd": 1,
    "ops": 2,
    "nn": 3,
    "optim": 4,
    "distributed": 4,
    "data": 4,
    "train": 5,
}


def imports(file):
    """Absolute names of all modules that `file` imports, lazy imports included."""
    package = ("minidl", *file.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            base = ".".join((*base, *filter(None, [node.module])))
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def test_rooms_import_downwards_only():
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        room = file.relative_to(PACKAGE).parts[0]
        for name in imports(file) if room in LEVEL else ():
            parts = name.split(".")
            if parts[0] != "minidl":
                continue
            other = parts[1] if len(parts) > 1 else "minidl itself"
            if other == room or LEVEL.get(other, 99) < LEVEL[room]:
                continue
            if name not in ("minidl", "minidl.__version__"):
                wrong.append(f"{file.relative_to(PACKAGE)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_every_room_is_known():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == set(LEVEL)


def test_cupy_is_imported_in_one_file():
    files = [
        file.relative_to(PACKAGE).as_posix()
        for file in sorted(PACKAGE.rglob("*.py"))
        if any(name.split(".")[0] in ("cupy", "cupyx") for name in imports(file))
    ]
    assert files in (["array/device.py"], [])

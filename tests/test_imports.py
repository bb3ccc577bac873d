"""Imports run downwards only: a room may use the rooms below it, never beside or above."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

# Each entry may import itself and everything in the lines below it.
LAYERS: list[set[str]] = [
    {"kdpipe_cli"},
    {"kdpipe.__init__", "kdpipe.testing"},
    {"kdpipe.stages"},
    {"kdpipe.scoring", "kdpipe.losses", "kdpipe.search", "kdpipe.batching", "kdpipe.checkpoint"},
    {"kdpipe.models", "kdpipe.store"},
    {"kdpipe.features", "kdpipe.text"},
    {"kdpipe.corpus"},
    {"kdpipe.config"},
    {"kdpipe.files", "kdpipe.parallel", "kdpipe.progress"},
    {"kdpipe.errors"},
]
DEPTH = {room: depth for depth, layer in enumerate(LAYERS) for room in layer}
# Rooms whose worth lies in what they do without.
FORBIDDEN = {
    "kdpipe.store": {"torch", "torchaudio", "kdpipe.corpus", "kdpipe.text", "kdpipe.features"},
    "kdpipe.losses": {"kdpipe.store", "kdpipe.models", "kdpipe.config"},
    "kdpipe.models": {"kdpipe.config", "kdpipe.store"},
    "kdpipe.search": {"kdpipe.config", "kdpipe.store"},
}


def sources(repository: Path) -> list[tuple[str, Path]]:
    """(module name, path) of every module of both packages."""
    found = []
    for root in (repository / "pipeline", repository / "cli"):
        for path in sorted(root.rglob("*.py")):
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            found.append((module, path))
    return found


def imported(path: Path) -> set[str]:
    """Every module a file imports, at the top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def room_of(module: str) -> str | None:
    """The room a module belongs to; None for a library or a bare `kdpipe`."""
    parts = module.split(".")
    if parts[0] == "kdpipe_cli":
        return "kdpipe_cli"
    room = ".".join(parts[:2])
    return room if room in DEPTH else None


def test_every_module_belongs_to_a_room(repository: Path) -> None:
    strays = [module for module, _ in sources(repository) if room_of(module) is None]
    assert strays == []


def test_imports_run_downwards(repository: Path) -> None:
    upwards = []
    for module, path in sources(repository):
        room = room_of(module)
        assert room is not None
        for target in sorted(imported(path)):
            other = room_of(target)
            if other is not None and other != room and DEPTH[other] <= DEPTH[room]:
                upwards.append(f"{module} imports {target}")
    assert upwards == []


@pytest.mark.parametrize("room", sorted(FORBIDDEN))
def test_a_room_does_without_what_it_promised(repository: Path, room: str) -> None:
    offences = [
        f"{module} imports {target}"
        for module, path in sources(repository)
        if room_of(module) == room
        for target in imported(path)
        if any(target == name or target.startswith(f"{name}.") for name in FORBIDDEN[room])
    ]
    assert offences == []


def test_the_rule_sees_a_wrong_import(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text("def f():\n    from kdpipe.stages import decode\n")
    assert "kdpipe.stages.decode" in imported(wrong)
    assert room_of("kdpipe.stages.decode") == "kdpipe.stages"
    assert DEPTH["kdpipe.stages"] < DEPTH["kdpipe.losses"]

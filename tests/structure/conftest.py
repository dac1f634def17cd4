"""The repository as the structure tests read it: its files and the imports of its modules."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Folder of each package, lowest first: a package may import itself and those before it.
PACKAGES = {
    "introspect_kernels": ROOT / "kernels",
    "introspect": ROOT / "introspect",
    "introspect_probes": ROOT / "probes",
    "introspect_service": ROOT / "service",
}


@dataclass(frozen=True)
class Imported:
    """One imported name of a module: `from a.b import c` is imported as `a.b.c`."""

    name: str
    line: int
    when_loaded: bool
    """Whether loading the module runs it: not inside a function, and not for type checkers only."""

    @property
    def top(self) -> str:
        """The distribution's import name: `a` of `a.b.c`."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class Module:
    """A module of one of the four packages."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """The one of the four packages it belongs to."""
        return self.name.partition(".")[0]

    def imports(self) -> Iterator[Imported]:
        """Everything it imports, anywhere in it."""
        yield from _imports(self.tree, when_loaded=True)


def _imports(node: ast.AST, *, when_loaded: bool) -> Iterator[Imported]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Imported(alias.name, child.lineno, when_loaded) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            # Relative imports are banned (ruff, TID), so `module` is the full name.
            yield from (Imported(f"{child.module}.{alias.name}", child.lineno, when_loaded) for alias in child.names)
        else:
            deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from _imports(child, when_loaded=when_loaded and not deferred and not typing_only)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def packages() -> dict[str, Path]:
    """The four packages, lowest first, with the folders that hold them."""
    return PACKAGES


@pytest.fixture(scope="session")
def files() -> list[Path]:
    """Every file that is or would be committed; from git, which knows what is ignored."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [path for name in sorted(set(listed.stdout.split("\0"))) if name and (path := ROOT / name).is_file()]


@pytest.fixture(scope="session")
def modules() -> dict[str, Module]:
    """Every module of the four packages, by its full name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return found

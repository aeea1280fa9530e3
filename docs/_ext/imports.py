"""The imports in src/cdgrad, read from the source: drawn in docs/architecture.md and checked by tests."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "cdgrad"
Graph = dict[str, set[str]]


def core() -> Graph:
    """The method: modules and packages directly in cdgrad, without the study tool and the command line."""
    graph = _graph("cdgrad")
    for name in ("cdgrad", "__main__", "cli", "commands", "study", "bench"):
        graph.pop(name, None)
    return {name: targets & graph.keys() for name, targets in graph.items()}


def study() -> Graph:
    """The study tool: the folders and modules of cdgrad.study, and the commands above them."""
    graph = _graph("cdgrad.study")
    graph.pop("study", None)
    commands = {name for _, name in _imported(SOURCE / "commands") if name.startswith("cdgrad.study.")}
    graph["commands"] = {name.split(".")[2] for name in commands} & graph.keys()
    return {name: targets & graph.keys() for name, targets in graph.items()}


def layers(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Nodes by the length of the longest path below them, the lowest layer first.

    Raises:
        ValueError: the graph has a circle.
    """
    depth: dict[str, int] = {}

    def measure(node: str, above: tuple[str, ...]) -> int:
        if node in above:
            raise ValueError("circular imports: " + " -> ".join((*above, node)))
        if node not in depth:
            depth[node] = 1 + max((measure(below, (*above, node)) for below in graph[node]), default=-1)
        return depth[node]

    for node in graph:
        measure(node, ())
    return [sorted(n for n in graph if depth[n] == level) for level in range(max(depth.values()) + 1)]


def needed(graph: Mapping[str, set[str]]) -> Graph:
    """The arrows that no longer path implies: the transitive reduction, which has the same order."""

    def reach(node: str) -> set[str]:
        return set().union(*({below} | reach(below) for below in graph[node]))

    return {
        node: {t for t in targets if not any(t in reach(other) for other in targets - {t})}
        for node, targets in graph.items()
    }


def _graph(package: str) -> Graph:
    folder = SOURCE.joinpath(*package.split(".")[1:])
    depth = package.count(".") + 1
    graph: Graph = {}
    for path, name in _imported(folder):
        own = path.relative_to(folder).parts[0].removesuffix(".py")
        own = package.rpartition(".")[2] if own == "__init__" else own
        targets = graph.setdefault(own, set())
        parts = name.split(".")
        if name.startswith(package + ".") and parts[depth] != own:
            targets.add(parts[depth])
    return graph


@lru_cache  # every picture is drawn twice
def _imported(folder: Path) -> tuple[tuple[Path, str], ...]:
    """Each file and each module that it imports when it runs; at least one pair per file."""
    return tuple(_read(folder))


def _read(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*.py")):
        yield path, ""
        tree = ast.parse(path.read_text(encoding="utf-8"))
        skipped = {
            id(inner)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if id(node) in skipped:
                continue
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    yield path, f"{node.module}.{alias.name}"

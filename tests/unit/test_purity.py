"""The calls that the core makes, about which the import contracts cannot say anything.

import-linter checks that the core imports no module for I/O. Built-in functions need no import.
"""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
IMPURE_CALLS = {"__import__", "breakpoint", "eval", "exec", "input", "open", "print"}
PATH_SPELLING = {"PathLike", "fsencode", "fsdecode", "fspath"}
"""Names of `os` that ask nothing of the machine."""


TOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
CORE: list[str] = next(
    contract["source_modules"]
    for contract in TOOLS["importlinter"]["contracts"]
    if contract.get("id") == "core"
)


def core() -> list[Path]:
    """Return the source files that the contract about purity names."""
    paths: list[Path] = []
    for module in CORE:
        path = ROOT / module.replace(".", "/")
        paths += sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return paths


def nodes(path: Path) -> Iterator[ast.AST]:
    yield from ast.walk(ast.parse(path.read_text(), str(path)))


def test_core_calls_no_built_in_for_io() -> None:
    calls = [
        f"{path}:{node.lineno}: {node.func.id}()"
        for path in core()
        for node in nodes(path)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in IMPURE_CALLS
    ]
    assert calls == []


def test_config_uses_os_to_spell_file_names_only() -> None:
    uses = [
        f"{path}:{node.lineno}: os.{node.attr}"
        for path in sorted((ROOT / "vtep/config").rglob("*.py"))
        for node in nodes(path)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and node.attr not in PATH_SPELLING
    ]
    assert uses == []

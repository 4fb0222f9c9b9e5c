"""Rules for readers: the openings of docstrings, and the length of modules."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("vtep", "tests", "bench")
LINES_MAX = 500
OPENINGS = {"Have", "How", "Let", "What", "Where", "Whether", "Who"}


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each docstring, those below attributes included."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text


def test_no_docstring_opens_with_a_vague_word() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text.splitlines()[0]}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, text in docstrings(ast.parse(path.read_text(), str(path)))
        if not OPENINGS.isdisjoint(text.split(maxsplit=1)[:1])
    ]
    assert found == []


def test_a_module_of_more_than_500_lines_has_a_reason() -> None:
    reasons = (ROOT / "docs" / "architecture.md").read_text()
    long = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "vtep").rglob("*.py")
        if len(path.read_text().splitlines()) > LINES_MAX
    }
    assert long == set(re.findall(r"^- `(vtep/[a-z_/]+\.py)`: ", reasons, re.MULTILINE))

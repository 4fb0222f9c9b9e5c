"""The language of docstrings: none opens with a word that hides its subject."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("vtep", "tests", "bench")
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

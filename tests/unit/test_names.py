"""One meaning per name: no two public classes of the package share a name."""

import ast
from collections import defaultdict
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "vtep"


def public_classes() -> dict[str, list[str]]:
    """Return the modules that define each public class at their top level."""
    found: dict[str, list[str]] = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(), str(path)).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(str(path.relative_to(PACKAGE.parent)))
    return found


def test_no_two_public_classes_share_a_name() -> None:
    shared = {name: paths for name, paths in public_classes().items() if len(paths) > 1}
    assert shared == {}

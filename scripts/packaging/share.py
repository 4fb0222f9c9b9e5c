"""Write the files that pyvtep installs below share/: manual pages and shell completions.

    python scripts/packaging/share.py DIRECTORY

The build hook of the wheel and scripts/deb run this. It needs click and attrs only.
"""

import datetime
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# The source tree is described, not an installed pyvtep; and it is left as it was.
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
sys.dont_write_bytecode = True

import manpages  # noqa: E402
from click.shell_completion import get_completion_class  # noqa: E402
from release_date import release_date  # noqa: E402

from vtep.cli.main import cli  # noqa: E402

_COMPLETIONS = {
    "bash": "bash-completion/completions/pyvtep",
    "zsh": "zsh/site-functions/_pyvtep",
    "fish": "fish/vendor_completions.d/pyvtep.fish",
}


def write(share: Path, date: datetime.date) -> None:
    """Write all files below a directory that stands for share/."""
    files = {f"man/man{name[-1]}/{name}": text for name, text in manpages.pages(date).items()}
    for shell, path in _COMPLETIONS.items():
        found = get_completion_class(shell)
        if found is None:
            raise SystemExit(f"this version of click has no completion for {shell}")
        files[path] = found(cli, {}, "pyvtep", "_PYVTEP_COMPLETE").source()
    for path, text in files.items():
        file = share / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]), release_date(ROOT / "CHANGELOG.md"))

"""A JSON document on disk that survives a crash of the process or of the host at any time."""

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from vtep import descriptors
from vtep.errors import VtepError

log = logging.getLogger("vtep")

DIRECTORY = Path("/var/lib/pyvtep/docker")
"""Directory of the state of the plug-in, on a file system that survives a boot."""


class JsonStore:
    """One file with a JSON object, which is replaced as a whole.

    It has one writer: callers that share a store lock it themselves.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, member: str) -> dict[str, Any]:
        """Return the object that is a member of the document; an empty one if there is none.

        Side effect: a damaged file is moved aside. The engine knows the most of what was in it.

        Raises: VtepError if the file cannot be read.
        """
        try:
            document = json.loads(self.path.read_bytes())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise VtepError(
                f"cannot read {self.path}: {descriptors.reason(error)}; run as root"
            ) from error
        except (ValueError, RecursionError):
            document = None
        found = document.get(member, {}) if isinstance(document, dict) else None
        if not isinstance(found, dict):
            self._set_aside()
            return {}
        return found

    def _set_aside(self) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged")
        try:
            self.path.replace(aside)
        except OSError as error:
            raise VtepError(
                f"cannot move the damaged file {self.path}: {descriptors.reason(error)}; remove it"
            ) from error
        log.warning(
            "%s is damaged; it is now %s, and networks are looked up at the engine",
            *(self.path, aside),
        )

    def save(self, value: dict[str, Any]) -> None:
        """Replace the object. After a return, it survives a crash; before, the old one does.

        Raises: VtepError if the file cannot be written.
        """
        temporary = self.path.with_name(f".{self.path.name}.new")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with temporary.open("w") as file:
                temporary.chmod(0o600)
                json.dump(value, file, indent=1)
                file.flush()
                # Before the rename: else a crash could leave an empty file under the new name.
                os.fsync(file.fileno())
            temporary.replace(self.path)
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise VtepError(
                f"cannot write {self.path}: {descriptors.reason(error)}; free space there, or run "
                "as root"
            ) from error

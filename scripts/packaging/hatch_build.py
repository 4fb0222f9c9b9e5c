"""Build hook of the wheel: add the manual pages and completions to its share/."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShareHook(BuildHookInterface):  # type: ignore[misc] # hatchling is not installed here
    """A hook that owns the directory of the files that it generates."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate the files, unless the installation is an editable one."""
        if version == "editable":
            return
        self._share = TemporaryDirectory()
        # In a process of its own, since it imports vtep from the source tree.
        script = Path(self.root, "scripts/packaging/share.py")
        subprocess.run([sys.executable, script, self._share.name], check=True)
        build_data["shared_data"][self._share.name] = "share"

    def finalize(self, version: str, _build_data: dict[str, Any], _artifact_path: str) -> None:
        """Remove the generated files."""
        if version != "editable":
            self._share.cleanup()

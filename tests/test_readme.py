"""What the README says of options and files is what there is."""

import re
from pathlib import Path

import attrs

from vtep import Config
from vtep.config import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_option_table_lists_every_option() -> None:
    listed = re.findall(r"^\| `--([a-z0-9-]+)", README, re.MULTILINE)
    fields = (*attrs.fields(Config), *attrs.fields(Settings))
    options = [field.name.replace("_", "-") for field in fields if field.metadata]
    assert listed == [*options, "config", "debug"]


def test_every_room_and_script_exists() -> None:
    named = set(re.findall(r"`((?:vtep|scripts)/[\w/.]*)`?", README))
    assert {"vtep/engine.py", "scripts/lint"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []

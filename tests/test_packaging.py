"""The sdist, the wheel, their manual pages and completions, as a user installs them."""

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import click
import pytest

from tests.packages import ROOT, build, run
from vtep import __version__
from vtep.cli.main import cli


def pages(share: Path) -> list[Path]:
    return sorted(share.glob("man/man*/*"))


@pytest.fixture(scope="module")
def share(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the share/ of the wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder / f"pyvtep-{__version__}.data/data/share"


def test_a_build_is_reproducible_also_from_its_own_sdist(wheel: Path, tmp_path: Path) -> None:
    sdist = wheel.with_name(f"pyvtep-{__version__}.tar.gz")
    # Other permissions, times, place, language and time zone.
    strange = {"TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": "/"}
    run("sh", "-c", f"umask 077 && tar --extract --touch --file {sdist}", cwd=tmp_path)
    unpacked = tmp_path / f"pyvtep-{__version__}"
    # The tools, which scripts/build would install again otherwise.
    (unpacked / ".venv-build").symlink_to(ROOT / ".venv-build")
    again = build(unpacked, tmp_path / "elsewhere", **strange)
    assert again.read_bytes() == wheel.read_bytes()
    assert (again.parent / sdist.name).read_bytes() == sdist.read_bytes()


def test_the_files_of_the_page_are_in_wheel_and_sdist(wheel: Path) -> None:
    files = {f"vtep/web/static/{each.name}" for each in (ROOT / "vtep/web/static").iterdir()}
    assert {"vtep/web/static/index.html", "vtep/web/static/app.js"} <= files
    with zipfile.ZipFile(wheel) as archive:
        assert files <= set(archive.namelist())
    name = f"pyvtep-{__version__}"
    with tarfile.open(wheel.with_name(f"{name}.tar.gz")) as sdist:
        assert {f"{name}/{each}" for each in files} <= set(sdist.getnames())


def test_every_command_and_option_has_its_place_in_a_manual_page(share: Path) -> None:
    expected = {f"pyvtep-{name}.8" for name, command in cli.commands.items() if not command.hidden}
    assert {page.name for page in pages(share)} == expected | {"pyvtep.8", "pyvtep.toml.5"}
    for name, command in [("", cli), *cli.commands.items()]:
        page = share / "man/man8" / (f"pyvtep-{name}.8" if name else "pyvtep.8")
        text = rendered(page)
        group = {"": cli} if not name else getattr(command, "commands", {"": command})
        for verb in (each for each in group.values() if not each.hidden):
            options = [p for p in verb.params if isinstance(p, click.Option) and not p.hidden]
            for option in options:
                assert set(option.opts) <= set(re.findall(r"-[\w-]+", text)), page.name
                # The text of a long option is not filled the same way on a page.
                help_text = " ".join((option.help or "").replace("`", "").split())
                assert help_text in " ".join(text.split()), (page.name, option.name)


def rendered(page: Path) -> str:
    """Return the text of a page as man shows it, without hyphenation."""
    text = run("mandoc", "-T", "utf8", "-O", "width=900", page)
    return re.sub(".\b", "", text)


def test_the_manual_pages_are_flawless(share: Path) -> None:
    for page in pages(share):
        style = run("mandoc", "-T", "lint", "-W", "style", page, check=False)
        # References are looked up in the database of the installed pages.
        flaws = [row for row in style.splitlines() if "referenced manual not found" not in row]
        assert not [row for row in flaws if "mandoc.db" not in row]
        done = subprocess.run(
            ["man", "--warnings", "--local-file", page],
            env={**os.environ, "LC_ALL": "C.UTF-8", "MANPAGER": "cat", "MANWIDTH": "80"},
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stderr == "", page.name
        assert "NAME\n" in re.sub(".\b", "", done.stdout)


def test_each_shell_completes_with_the_file_at_its_place(share: Path) -> None:
    venv = Path(sys.executable).parent
    environ = {**os.environ, "PATH": f"{venv}:{os.environ['PATH']}"}
    bash = f"""
        source {share}/bash-completion/completions/pyvtep
        COMP_WORDS=(pyvtep fdb ap) COMP_CWORD=2
        _pyvtep_completion pyvtep
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    assert run("bash", "-c", bash, env=environ).split() == ["append"]
    fish = f"source {share}/fish/vendor_completions.d/pyvtep.fish; complete -C 'pyvtep fdb ap'"
    assert run("fish", "--no-config", "-c", fish, env=environ).split()[0] == "append"
    # zsh completes in its line editor only: compinit finds the function, whose results are printed.
    zsh = f"""
        fpath=({share}/zsh/site-functions $fpath)
        autoload -Uz compinit && compinit -u -D
        print -r -- $_comps[pyvtep]
        _describe() {{ print -r -- ${{(P)3}} }}
        words=(pyvtep fdb ap) CURRENT=3
        _pyvtep
    """
    found = run("zsh", "--no-rcs", "-c", zsh, env=environ)
    assert found.split()[:2] == ["_pyvtep", "append:Add"]

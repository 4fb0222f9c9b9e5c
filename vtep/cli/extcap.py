"""`pyvtep extcap`: each VNI of each running pyvtep as an interface of Wireshark.

Wireshark runs the programs in its extcap folders, and asks them for their interfaces (its
doc/README.extcap). `install` writes a small script there, which runs `pyvtep extcap run`.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import click
from attrs import frozen

from vtep import __version__
from vtep.cli import commands
from vtep.control import socket_files
from vtep.control.client import Client
from vtep.errors import ConfigError, VtepError

_NAME = "pyvtep"
_HELP = "https://www.wireshark.org/docs/man-pages/extcap.html"
_FOLDERS_S = 20.0

_DENIED = "pyvtep-denied"
"""The interface that stands for processes that may not be asked, so that Wireshark shows why."""

_ARGUMENTS = (
    "arg {number=0}{call=--point}{display=Show}{type=selector}{tooltip=TAP, underlay, or both}",
    "value {arg=0}{value=both}{display=frames and datagrams}{default=true}",
    "value {arg=0}{value=inner}{display=inner frames}{default=false}",
    "value {arg=0}{value=outer}{display=outer datagrams}{default=false}",
    "arg {number=1}{call=--drops}{display=Dropped frames only}{type=boolflag}",
    "arg {number=2}{call=--superframes}{display=Leave superframes unsegmented}{type=boolflag}",
    "arg {number=3}{call=--remote}{display=Remote}{type=string}{tooltip=Address of a remote VTEP}",
    "arg {number=4}{call=--mac}{display=MAC}{type=string}{tooltip=An inner MAC address}",
)


@frozen
class ExtcapInterface:
    """A VNI of a running pyvtep, as Wireshark names it."""

    value: str
    display: str
    socket: Path
    vni: int


@click.group(cls=commands.CliGroup)
def extcap() -> None:
    """List the VNIs of running pyvteps as interfaces in Wireshark."""


@extcap.command()
@commands.option("--dir", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Folder.")
def install(folder: Path | None) -> None:
    """Install the extcap program for this user, or into --dir."""
    path = (folder or _default_folder()) / _NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_script())
        path.chmod(0o755)
    except OSError as error:
        raise VtepError(f"cannot write {path}: {error.strerror}; name another --dir") from error
    click.echo(f"installed {path}; Wireshark lists the VNIs after: Capture > Refresh Interfaces")


@extcap.command()
@commands.option("--dir", "folder", metavar="DIR", type=click.Path(path_type=Path), help="Folder.")
def uninstall(folder: Path | None) -> None:
    """Remove the extcap program."""
    path = (folder or _default_folder()) / _NAME
    try:
        path.unlink()
    except FileNotFoundError:
        raise VtepError(f"{path}: is not installed") from None
    except OSError as error:
        raise VtepError(f"cannot remove {path}: {error.strerror}") from error
    click.echo(f"removed {path}")


@extcap.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(arguments: tuple[str, ...]) -> None:
    """Answer Wireshark, which runs this."""
    parser = argparse.ArgumentParser(prog="pyvtep extcap run", allow_abbrev=False)
    for flag in ("interfaces", "dlts", "config"):
        parser.add_argument(f"--extcap-{flag}", action="store_true")
    for flag in ("--capture", "--drops", "--superframes"):
        parser.add_argument(flag, action="store_true")
    for option in ("--extcap-interface", "--extcap-capture-filter", "--fifo"):
        parser.add_argument(option, default="")
    for option in ("--point", "--remote", "--mac"):
        parser.add_argument(option)
    # Versions of Wireshark add options, such as --extcap-version and --extcap-control-in.
    given, _ = parser.parse_known_args(list(arguments))
    if given.extcap_interfaces:
        _print_interfaces()
    elif given.extcap_dlts:
        print("dlt {number=1}{name=EN10MB}{display=Ethernet}")
    elif given.extcap_config:
        print(*_ARGUMENTS, sep="\n")
    elif given.capture:
        _capture(given)
    elif given.extcap_capture_filter:
        _check_filter(given.extcap_capture_filter)
    else:
        raise click.UsageError("extcap run: is for Wireshark; see: pyvtep extcap install")


def _print_interfaces() -> None:
    print(f"extcap {{version={__version__}}}{{help={_HELP}}}{{display=pyvtep}}")
    for interface in interfaces():
        print(f"interface {{value={interface.value}}}{{display={interface.display}}}")


def interfaces() -> Iterator[ExtcapInterface]:
    """Yield the VNIs of all pyvteps of this host, and one interface if some may not be asked."""
    names: set[str] = set()
    for live in socket_files.live():
        try:
            with Client(live.path) as client:
                segments = client.call("process.show")["segments"]
        except VtepError:  # It has ended, or is too busy to answer.
            continue
        for segment in segments:
            value = f"pyvtep-{segment['dev']}-{segment['vni']}"
            if value in names:  # In another network namespace, or another process.
                value += f"-{live.path.stem}"
            names.add(value)
            display = f"pyvtep VNI {segment['vni']} ({segment['dev']})"
            yield ExtcapInterface(value, display, live.path, segment["vni"])
    if socket_files.has_denied():
        yield ExtcapInterface(_DENIED, "pyvtep: permission denied (start to see why)", Path(), 0)


def _capture(given: argparse.Namespace) -> None:
    """Write a capture to the fifo until Wireshark closes it, or ends this process."""
    from vtep.cli.capture_output import run_capture  # noqa: PLC0415  it imports asyncio
    from vtep.control.frames import FrameStream  # noqa: PLC0415

    name = given.extcap_interface
    if name == _DENIED:
        raise VtepError(
            "permission denied: run Wireshark as a member of the group of --control-admin-group of "
            "that pyvtep, or capture as root: sudo pyvtep capture -w - | wireshark -k -i -"
        )
    for interface in interfaces():
        if interface.value == name:
            break
    else:
        raise VtepError(f"{name}: no such VNI; it has ended: refresh the interfaces of Wireshark")
    stream = FrameStream(
        interface.socket,
        vni=interface.vni,
        filter=given.extcap_capture_filter or None,
        point=given.point or None,
        remote=given.remote or None,
        mac=given.mac or None,
        drops=given.drops or None,
        superframes=given.superframes or None,
    )
    with suppress(BrokenPipeError):  # Wireshark has stopped the capture.
        run_capture(stream, given.fifo)


def _check_filter(expression: str) -> None:
    """Print what is wrong with a filter expression; print nothing for a valid one."""
    from vtep.capture.libpcap import FrameFilter  # noqa: PLC0415  it imports ctypes

    try:
        FrameFilter(expression).close()
    except ConfigError as error:
        print(error)


def _script() -> str:
    """Return the program for the extcap folder: it runs this pyvtep."""
    command = shlex.join((sys.executable, "-m", "vtep"))
    return f'#!/bin/sh\n# Written by: pyvtep extcap install\nexec {command} extcap run "$@"\n'


def _default_folder() -> Path:
    """Return the extcap folder of this user, which depends on the version of Wireshark."""
    if (named := os.environ.get("WIRESHARK_EXTCAP_DIR")) and os.geteuid() != 0:
        return Path(named)  # Wireshark ignores it for root.
    for program in ("tshark", "wireshark"):
        with suppress(OSError, subprocess.SubprocessError):
            command = (program, "-G", "folders")
            found = subprocess.run(  # noqa: S603  the programs are named above
                command, capture_output=True, text=True, timeout=_FOLDERS_S, check=True
            )
            folder = personal_folder(found.stdout.splitlines())
            if folder is not None:
                return folder
    return Path("~/.local/lib/wireshark/extcap").expanduser()


def personal_folder(lines: Sequence[str]) -> Path | None:
    """Return the folder for extcap programs of the user from the output of `tshark -G folders`."""
    paths: dict[str, Path] = {}
    for line in lines:
        name, _, path = line.partition(":")
        paths[name.strip().lower()] = Path(path.strip())
    if "personal extcap path" in paths:  # Since Wireshark 4.2.
        return paths["personal extcap path"]
    folder = paths.get("personal configuration")
    return None if folder is None else folder / "extcap"

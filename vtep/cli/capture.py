"""`pyvtep capture`: frames of a running VTEP, as text or as pcapng."""

import sys
from contextlib import suppress

import click

from vtep.cli import client_command, commands
from vtep.control import Client

_STDOUT = "-"


@click.command(cls=commands.CliCommand)
@click.argument("expression", metavar="[FILTER]...", nargs=-1)
@commands.option("--dev", metavar="TAP", help="TAP of the segment.")
@commands.option("--remote", metavar="IP", help="Frames from and to this remote only.")
@commands.option("--mac", metavar="MAC", help="Frames from and to this inner MAC only.")
@click.option("--inner", "point", flag_value="inner", help="Ethernet frames at the TAP only.")
@click.option("--outer", "point", flag_value="outer", help="Datagrams at the underlay only.")
@click.option("--both", "point", flag_value="both", help="Frames and datagrams [default].")
@commands.option("--drops", is_flag=True, help="Dropped frames only, with the reason.")
@commands.option(
    "--count", "-c", metavar="N", type=click.IntRange(min=1), help="End after N frames."
)
@commands.option(
    "--snaplen", "-s", metavar="N", type=click.IntRange(min=14), help="Octets kept of each frame."
)
@commands.option("--write", "-w", "path", metavar="FILE", help="Write pcapng to a file, or to -.")
@commands.option("--superframes", is_flag=True, help="Leave superframes unsegmented.")
@client_command.with_client(changes=False)
def capture(
    vtep: Client,
    expression: tuple[str, ...],
    path: str | None,
    vni: str | None,
    **wanted: str | int | bool | None,
) -> None:
    """Show frames and datagrams as they pass, dropped ones with the reason.

    FILTER is an expression of tcpdump (pcap-filter(7)) about the inner frame. Without --vni or
    --dev, all segments are captured, and datagrams that belong to none. With --write, the frames
    are written as pcapng, which Wireshark reads:

        pyvtep capture -w - | wireshark -k -i -

    A segment that is captured is off the fast path meanwhile.
    """
    if path == _STDOUT and sys.stdout.isatty():
        raise click.UsageError("-w -: refuses to write binary octets to a terminal; use a pipe")
    # They import asyncio, which --help does without.
    from vtep.cli.capture_output import describe, run_capture, summary  # noqa: PLC0415
    from vtep.control.frames import FrameStream  # noqa: PLC0415

    stream = FrameStream(
        vtep.path,
        vni=vni,
        filter=" ".join(expression) or None,
        remotes=True if path is None else None,
        **{name: value for name, value in wanted.items() if value not in (None, False)},
    )
    stream.on_begin = lambda segments: click.echo(f"{describe(segments)}; Ctrl-C ends it", err=True)
    try:
        run_capture(stream, path)
    finally:
        with suppress(OSError):
            for line in summary(stream):
                click.echo(line, err=True)

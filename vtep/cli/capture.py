"""`pyvtep capture`: frames of a running VTEP, as text or as pcapng."""

import asyncio
import signal
import sys
from contextlib import aclosing, suppress
from typing import BinaryIO

import click

from vtep.cli import client_command, commands
from vtep.cli.frame_text import format_frame
from vtep.control import Client
from vtep.control.frames import FrameStream
from vtep.errors import VtepError

_STDOUT = "-"

_END_S = 2.0
"""Seconds for the frames that are on the way when the capture is interrupted."""


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
    stream = FrameStream(
        vtep.path,
        vni=vni,
        filter=" ".join(expression) or None,
        remotes=True if path is None else None,
        **{name: value for name, value in wanted.items() if value not in (None, False)},
    )
    try:
        asyncio.run(run_capture(stream, path))
    finally:
        _print_summary(stream)


async def run_capture(stream: FrameStream, path: str | None) -> None:
    """Print or write a capture until it ends, or SIGINT or SIGTERM ends it.

    Raises: VtepError; BrokenPipeError if the reader of the output is gone.
    """
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        if task is not None and stream.is_stopped:
            task.cancel()  # The second signal: what is on the way does not arrive.
        stream.stop()
        loop.call_later(_END_S, lambda: task.cancel() if task is not None else None)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    with suppress(asyncio.CancelledError):
        async with stream:
            if path is None:
                async for frame in stream:
                    # Flushed, since a pipe would keep lines back until there are 8 KiB of them.
                    print(format_frame(frame), flush=True)
            else:
                await _write(stream, path)


async def _write(stream: FrameStream, path: str) -> None:
    try:
        # Blocking writes: a capture whose output is slow loses frames at the VTEP, and says so.
        output: BinaryIO = sys.stdout.buffer if path == _STDOUT else open(path, "wb")  # noqa: SIM115, ASYNC230
    except OSError as error:
        raise VtepError(f"-w {path}: cannot write: {error.strerror}") from error
    try:
        async with aclosing(stream.pieces()) as pieces:
            async for octets, _ in pieces:
                output.write(octets)
                output.flush()
    finally:
        if path != _STDOUT:
            output.close()


def _print_summary(stream: FrameStream) -> None:
    """Print what was captured and lost, and drops that could not be shown."""
    if not stream.has_begun:
        return
    lines = [f"{stream.captured} captured, {stream.lost} dropped by the capture"]
    if stream.end and not stream.is_stopped:
        lines.append(f"the capture has ended: {stream.end}")
    lines += [f"not shown, since the frames are not known: {each}" for each in stream.not_shown]
    with suppress(OSError):
        click.echo("\n".join(lines), err=True)

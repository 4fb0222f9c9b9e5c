"""The output of a capture: lines of text, or pcapng in a file or a pipe."""

import asyncio
import signal
import sys
from contextlib import aclosing, suppress
from typing import Any, BinaryIO

from vtep.cli.frame_text import format_frame
from vtep.control.frames import FrameStream
from vtep.errors import VtepError

STDOUT = "-"

_NAMED_MAX = 4

_END_S = 2.0
"""Seconds for the frames that are on the way when the capture is interrupted."""


def run_capture(stream: FrameStream, path: str | None) -> None:
    """Print a capture, or write it to a file, until it ends, or SIGINT or SIGTERM ends it.

    Raises: ConfigError or VtepError; BrokenPipeError if the reader of the output is gone.
    """
    asyncio.run(_run(stream, path))


async def _run(stream: FrameStream, path: str | None) -> None:
    task = asyncio.current_task()
    loop = asyncio.get_running_loop()

    def cancel() -> None:
        if task is not None:
            task.cancel()

    def interrupt() -> None:
        if stream.is_stopped:
            cancel()  # The second signal: what is on the way does not arrive.
        stream.stop()
        loop.call_later(_END_S, cancel)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    with suppress(asyncio.CancelledError):
        async with stream:
            if path is not None:
                await _write(stream, path)
                return
            async for frame in stream:
                # Flushed, since a pipe would keep lines back until there are 8 KiB of them.
                print(format_frame(frame), flush=True)


async def _write(stream: FrameStream, path: str) -> None:
    """Write the octets as they arrive.

    The writes block: while the output is not read, the VTEP counts frames as lost by the capture.
    """
    try:
        output: BinaryIO = sys.stdout.buffer if path == STDOUT else open(path, "wb")  # noqa: SIM115, ASYNC230
    except OSError as error:
        raise VtepError(f"-w {path}: cannot write: {error.strerror}") from error
    try:
        async with aclosing(stream.pieces()) as pieces:
            async for octets, _ in pieces:
                output.write(octets)
                output.flush()
    finally:
        if path != STDOUT:
            output.close()


def describe(segments: list[dict[str, Any]]) -> str:
    """Return a line about a capture that begins."""
    names = ", ".join(f"{each['dev']} (vni {each['vni']})" for each in segments[:_NAMED_MAX])
    more = len(segments) - _NAMED_MAX
    return f"capturing {names or 'no vni'}" + (f" and {more} more" if more > 0 else "")


def summary(stream: FrameStream) -> list[str]:
    """Return lines about what was captured and lost, and about drops that could not be shown."""
    if not stream.has_begun:
        return []
    lines = [f"{stream.captured} captured, {stream.lost} dropped by the capture"]
    if stream.end and not stream.is_stopped:
        lines.append(f"the capture has ended: {stream.end}")
    return lines + [f"not shown: {each}" for each in stream.not_shown]

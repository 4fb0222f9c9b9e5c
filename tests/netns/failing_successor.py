"""A process that begins to take over from a pyvtep, and fails at a stage of the handover.

python -m tests.netns.failing_successor CONTROL STAGE HOW

At the stage `hello`, `snapshot`, `ready`, `go` or `reading`, it does one of these: `exit`, `hang`,
send `garbage`, send a message of an unknown `version`, or `refuse` with a reason.
"""

import asyncio
import os
import sys
import time
from pathlib import Path

from vtep.control import Client
from vtep.upgrade import format as fmt
from vtep.upgrade.channel import Channel, close_all

_STEP_S = 20.0


async def _fail(channel: Channel, how: str) -> None:
    if how == "exit":
        os._exit(1)
    elif how == "refuse":
        await channel.send(fmt.FAILED, reason="it has no mind to")
    elif how in ("garbage", "version"):
        octets = b"\xff" * 40 if how == "garbage" else b"pvup\xff\xff" + fmt.encode(fmt.READY)[6:]
        channel._sock.send(octets)
    time.sleep(3600)  # noqa: ASYNC251  hang, until it is killed


async def _main(control: Path, stage: str, how: str) -> None:
    with Client(control) as client:
        where = client.call("takeover")["socket"]
    channel = Channel.connect(Path(where))
    if stage == "hello":
        await _fail(channel, how)
    await channel.send(fmt.HELLO, version="0")
    while True:
        message, fds = await channel.receive(
            *(fmt.PROCESS, fmt.DESCRIPTORS, fmt.SEGMENT, fmt.FDB, fmt.COMPLETE), seconds=_STEP_S
        )
        if stage == "snapshot":
            await _fail(channel, how)
        close_all(fds)
        if message.kind == fmt.COMPLETE:
            break
    if stage == "ready":
        await _fail(channel, how)
    await channel.send(fmt.READY)
    while (await channel.receive(fmt.FDB, fmt.GO, seconds=_STEP_S))[0].kind != fmt.GO:
        pass
    if stage == "reading":
        await channel.send(fmt.READING)
    await _fail(channel, how)


asyncio.run(_main(Path(sys.argv[1]), *sys.argv[2:]))

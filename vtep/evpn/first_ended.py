"""Parts of a process that run side by side until the first one ends."""

import asyncio
from collections.abc import Awaitable
from typing import Any


async def run_until_first(*parts: Awaitable[Any]) -> None:
    """Run parts until one ends, then cancel the others. Raises: the exception of that one."""
    tasks = [asyncio.ensure_future(each) for each in parts]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for each in done:
        each.result()

"""A process with an event loop and a `FastPathLoader`, which prints each state.

Arguments: the module to load, and what to do in the end: `exit`, or `wait` for SIGTERM.
"""

import asyncio
import signal
import sys

from vtep.daemon.fast_path_loader import FastPathLoader
from vtep.fastpath.state import FastPathStatus


async def main(module: str, end: str) -> None:
    loader = FastPathLoader(module=module)
    finished, ended = asyncio.Event(), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    loader.start(finished.set)
    shown = None
    while not ended.is_set():
        if loader.state is not shown:
            shown = loader.state
            print(shown, flush=True)
        if finished.is_set() and end == "exit":
            break
        await asyncio.sleep(0.001)
    if loader.state.status is FastPathStatus.ON and loader.turns is not None:
        from numba.core import config  # noqa: PLC0415  is there only if loading succeeded

        print(loader.turns.answer(20), repr(config.CACHE_DIR), flush=True)
    loader.stop()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))

"""The end of a process: that of its VTEP, or an error of a companion."""

import asyncio

import pytest

from vtep import VtepError
from vtep.cli.run import _until_first_ends


async def _end(error: Exception | None = None) -> None:
    if error is not None:
        raise error


async def _go_on() -> None:
    await asyncio.Event().wait()


def test_errors_after_the_end_of_the_vtep_are_ignored() -> None:
    for _ in range(20):  # They have ended in the same turn, in any order.
        asyncio.run(_until_first_ends(_end(), _go_on(), _end(RuntimeError("it had ended"))))


def test_the_error_of_the_vtep_is_raised() -> None:
    with pytest.raises(VtepError, match="its TAP is gone"):
        asyncio.run(_until_first_ends(_end(VtepError("its TAP is gone")), _end(VtepError("else"))))


def test_the_error_of_a_companion_ends_the_vtep() -> None:
    with pytest.raises(VtepError, match="the network is gone"):
        asyncio.run(_until_first_ends(_go_on(), _go_on(), _end(VtepError("the network is gone"))))

"""What ends a process: the VTEP's end, or what runs beside it and can't go on."""

import asyncio

import pytest

from vtep import VtepError
from vtep.cli.run import _until_first_ends


async def _end(error: Exception | None = None) -> None:
    if error is not None:
        raise error


async def _go_on() -> None:
    await asyncio.Event().wait()


def test_what_becomes_of_others_when_the_vtep_has_ended_does_not_matter() -> None:
    for _ in range(20):  # They have ended in the same turn, in any order.
        asyncio.run(_until_first_ends(_end(), _go_on(), _end(RuntimeError("it had ended"))))


def test_the_end_of_the_vtep_is_told() -> None:
    with pytest.raises(VtepError, match="its TAP is gone"):
        asyncio.run(_until_first_ends(_end(VtepError("its TAP is gone")), _end(VtepError("else"))))


def test_who_can_not_go_on_beside_it_ends_it() -> None:
    with pytest.raises(VtepError, match="the network is gone"):
        asyncio.run(_until_first_ends(_go_on(), _go_on(), _end(VtepError("the network is gone"))))

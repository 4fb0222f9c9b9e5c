"""Waiting for a Docker network, as `docker attach --wait` does."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from vtep.docker import attachment
from vtep.docker.attachment import AttachableNetwork, NoBridgeError, wait_for
from vtep.docker.client import EngineClient, EngineUnreachableError, NoSuchNetworkError
from vtep.errors import VtepError

CLIENT = cast("EngineClient", SimpleNamespace())


def wait(monkeypatch: pytest.MonkeyPatch, *outcomes: Any) -> tuple[Any, list[str]]:
    """Wait with these outcomes of `find_network`. Returns: the network, and what was reported."""
    left = list(outcomes)

    def find_network(client: EngineClient, name: str) -> AttachableNetwork:
        assert (client, name) == (CLIENT, "mynetwork")
        outcome = left.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return cast("AttachableNetwork", outcome)

    monkeypatch.setattr(attachment, "find_network", find_network)
    monkeypatch.setattr("vtep.docker.attachment.time.sleep", lambda _: None)
    reported: list[str] = []
    found = wait_for(CLIENT, "mynetwork", reported.append)
    assert left == []
    return found, reported


def test_each_reason_to_wait_is_reported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    down, absent = EngineUnreachableError("does not answer"), NoSuchNetworkError("no network")
    network = object()
    assert wait(
        monkeypatch, down, down, absent, absent, down, NoBridgeError("no bridge"), network
    ) == (network, ["does not answer", "no network", "does not answer", "no bridge"])


def test_what_waiting_cannot_help_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VtepError, match="overlay"):
        wait(monkeypatch, EngineUnreachableError("does not answer"), VtepError("is an overlay"))

"""A client of the Docker engine: a thin wrapper around the Docker SDK, with blocking calls.

The SDK is an optional dependency; without it, the error says how to install it.
"""

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from time import sleep
from typing import Any, NoReturn

from vtep import descriptors
from vtep.descriptors import ShortageError
from vtep.errors import ConfigError, VtepError

_RECONNECT_INTERVAL_S = 0.5
"""Pause between attempts to reach an engine that does not answer."""

_DEFAULT_URL = "unix:///var/run/docker.sock"

_TIMEOUT_S = 10
"""Timeout of a request; an engine that takes longer counts as unreachable."""


class NoSuchNetworkError(VtepError):
    """An engine without a network of the given name."""


class EngineUnreachableError(VtepError):
    """An engine that does not answer, or whose answer makes no sense."""


def groups_of(url: str | None) -> tuple[int, ...]:
    """Return the group that the socket of an engine admits, if it is a Unix socket with one.

    None stands for the engine of `EngineClient(None)`.
    """
    scheme, _, path = (url or os.environ.get("DOCKER_HOST") or _DEFAULT_URL).partition("://")
    try:
        found = Path(path).stat() if scheme in ("unix", "http+unix") else None
    except OSError:  # The next request says why.
        found = None
    return (found.st_gid,) if found is not None and found.st_mode & stat.S_IWGRP else ()


class EngineClient:
    """A client of the engine at a URL or, by default, of the one that $DOCKER_HOST names.

    Its methods connect anew for each request, and raise VtepError if the engine does not answer.
    """

    def __init__(self, url: str | None) -> None:
        try:
            import docker  # noqa: PLC0415  optional, and slow to import
        except ImportError as error:
            raise VtepError(
                "the Docker SDK for Python is not installed: in the clone of pyvtep, scripts/setup "
                f"--extra docker, or {sys.executable} -m pip install '.[docker]'"
            ) from error
        self._docker = docker
        self._options = docker.utils.kwargs_from_env()
        if url is not None:
            self._options["base_url"] = url
        self.url: str = self._options.get("base_url", _DEFAULT_URL)
        try:
            docker.utils.parse_host(self.url)
        except (ValueError, docker.errors.DockerException) as error:
            raise ConfigError(
                f"--docker-host {self.url}: is not the address of an engine, such as "
                "unix:///var/run/docker.sock"
            ) from error

    def inspect(self, name: str) -> Mapping[str, Any]:
        """Return the engine's description of a network (`GET /networks/NAME`).

        Raises: NoSuchNetworkError if there is none of that name; EngineUnreachableError.
        """
        with self._session() as engine:
            try:
                inspected: Mapping[str, Any] = engine.inspect_network(name)
            except self._docker.errors.NotFound as error:
                raise NoSuchNetworkError(
                    f"the Docker engine at {self.url} has no network {name} (docker network ls); "
                    f"create it: docker network create --subnet 10.18.0.0/16 {name}"
                ) from error
        return inspected

    def list_networks(self) -> list[Mapping[str, Any]]:
        """Return the engine's descriptions of all networks (`GET /networks`), without containers.

        Raises: EngineUnreachableError.
        """
        with self._session() as engine:
            networks: list[Mapping[str, Any]] = engine.networks()
        return networks

    def stopped_containers(self, network: str) -> list[Mapping[str, Any]]:
        """Return the engine's descriptions of the containers of a network that don't run.

        Raises: VtepError.
        """
        wanted = {"network": [network], "status": ["exited", "created"]}
        with self._session() as engine:
            found = engine.containers(all=True, filters=wanted)
            return [engine.inspect_container(each["Id"]) for each in found]

    def start_container(self, number: str) -> None:
        """Start a container by its ID. Raises: VtepError."""
        with self._session() as engine:
            engine.start(number)

    def watch(
        self, on_change: Callable[[], object], on_unreachable: Callable[[], object]
    ) -> NoReturn:
        """Call `on_change` after each connect and each network event of the engine.

        Calls `on_unreachable` after each failed attempt to connect. Never returns, and survives
        restarts of the engine: run it in a daemon thread.
        """
        while True:
            try:
                with closing(self._connect()) as engine:
                    events = engine.events(filters={"type": "network"}, decode=True)
                    on_change()  # Events from before the connection are lost.
                    # Disconnects are not needed: a container that left does no harm.
                    for event in events:
                        if event.get("Action") in ("create", "destroy", "connect"):
                            on_change()
            except Exception as error:  # noqa: BLE001  whatever fails is tried again
                if _shortage(error):
                    descriptors.warn(str(self._translate(error)))
                else:
                    on_unreachable()
            sleep(_RECONNECT_INTERVAL_S)

    @contextmanager
    def _session(self) -> Iterator[Any]:
        """Connect to the engine for some requests. Raises: VtepError in place of any error."""
        try:
            with closing(self._connect()) as engine:
                yield engine
        except VtepError:
            raise
        except Exception as error:
            raise self._translate(error) from error

    def _connect(self) -> Any:
        # "auto" asks the engine for its API version: a fixed one is refused by older or newer ones.
        return self._docker.APIClient(version="auto", timeout=_TIMEOUT_S, **self._options)

    def _translate(self, error: BaseException) -> VtepError:
        """Return an error that says what to do, for any error of the SDK."""
        if shortage := _shortage(error):
            return ShortageError(
                f"cannot query the Docker engine at {self.url}: {descriptors.reason(shortage)}"
            )
        numbers = {cause.errno for cause in _causes(error) if isinstance(cause, OSError)}
        if numbers & {errno.EACCES, errno.EPERM}:
            return VtepError(
                f"no permission to talk to the Docker engine at {self.url}: run as root, or as a "
                "member of the group that owns its socket (docker)"
            )
        reasons = sorted(os.strerror(number) for number in numbers if number)
        reason = ", ".join(reasons) or " ".join(str(error).split())
        return EngineUnreachableError(
            f"the Docker engine at {self.url} does not answer ({reason}): check that it runs "
            "(systemctl status docker), or name another one with --docker-host"
        )


def _shortage(error: BaseException) -> OSError | None:
    """Return the cause that says that descriptors have run out, or None."""
    causes = (cause for cause in _causes(error) if isinstance(cause, OSError))
    return next(filter(descriptors.is_shortage, causes), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all its causes, which libraries also pass as arguments of errors."""
    pending: list[object] = [error]
    seen: set[int] = set()  # An error can be among its own causes.
    while pending:
        item = pending.pop()
        if isinstance(item, BaseException) and id(item) not in seen:
            seen.add(id(item))
            yield item
            pending += [item.__cause__, item.__context__, *item.args]

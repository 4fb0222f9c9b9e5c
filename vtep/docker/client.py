"""What an engine is asked: a thin shell around the Docker SDK, for threads that may wait.

The SDK is an optional part of pyvtep; without it, whoever asks is told how to get it.
"""

import errno
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from time import sleep
from typing import Any, NoReturn

from vtep import descriptors
from vtep.descriptors import ShortageError
from vtep.errors import ConfigError, VtepError

_PAUSE = 0.5
"""Seconds between two attempts to reach an engine that is gone."""

_ASK_TIMEOUT = 10
"""Seconds for an answer; an engine that takes longer is as good as none."""


class NoSuchNetworkError(VtepError):
    """The engine has no network of that name."""


class EngineGoneError(VtepError):
    """The engine does not answer, or did not make sense."""


class Client:
    """The engine at a URL, or at the one that docker's own environment variables name.

    Every method raises VtepError, saying what to do, where the engine does not answer.
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
        self.url: str = self._options.get("base_url", "unix:///var/run/docker.sock")
        try:
            docker.utils.parse_host(self.url)
        except (ValueError, docker.errors.DockerException) as error:
            raise ConfigError(
                f"--docker-host {self.url}: is no address of an engine, such as "
                "unix:///var/run/docker.sock"
            ) from error

    def inspect(self, name: str) -> Mapping[str, Any]:
        """What the engine says of a network, now.

        Raises NoSuchNetworkError where there is none of that name.
        """
        try:
            with closing(self._connect()) as engine:
                inspected: Mapping[str, Any] = engine.inspect_network(name)
        except self._docker.errors.NotFound as error:
            raise NoSuchNetworkError(
                f"the Docker engine at {self.url} has no network {name} (docker network ls); make "
                f"it: docker network create --subnet 172.18.0.0/16 {name}"
            ) from error
        except Exception as error:
            raise self._explain(error) from error
        return inspected

    def watch(self, changed: Callable[[], object], gone: Callable[[], object]) -> NoReturn:
        """Call `changed` whenever a network may have: at first, then at what the engine announces.

        And `gone` whenever the engine could not be reached. It never returns, and outlives the
        engine. Run it in a daemon thread.
        """
        while True:
            try:
                with closing(self._connect()) as engine:
                    events = engine.events(filters={"type": "network"}, decode=True)
                    changed()
                    for event in events:
                        if event.get("Action") in ("create", "destroy", "connect"):
                            changed()
            except Exception as error:  # noqa: BLE001  what can't be asked is asked again
                if _shortage(error):
                    descriptors.warn(str(self._explain(error)))
                else:
                    gone()
            sleep(_PAUSE)

    def _connect(self) -> Any:
        return self._docker.APIClient(version="auto", timeout=_ASK_TIMEOUT, **self._options)

    def _explain(self, error: BaseException) -> VtepError:
        if shortage := _shortage(error):
            return ShortageError(
                f"cannot ask the Docker engine at {self.url}: {descriptors.reason(shortage)}"
            )
        numbers = {cause.errno for cause in _causes(error) if isinstance(cause, OSError)}
        if numbers & {errno.EACCES, errno.EPERM}:
            return VtepError(
                f"no permission to talk to the Docker engine at {self.url}: run as root, or as a "
                "member of the group that owns its socket (docker)"
            )
        reasons = sorted(os.strerror(number) for number in numbers if number)
        reason = ", ".join(reasons) or " ".join(str(error).split())
        return EngineGoneError(
            f"the Docker engine at {self.url} does not answer ({reason}): is it running "
            "(systemctl status docker)? Another one is named with --docker-host"
        )


def _shortage(error: BaseException) -> OSError | None:
    """Return what says that descriptors have run out, if anything does."""
    causes = (cause for cause in _causes(error) if isinstance(cause, OSError))
    return next(filter(descriptors.is_shortage, causes), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and all that it was made of: libraries wrap errors in arguments of errors."""
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting:
        item = waiting.pop()
        if isinstance(item, BaseException) and id(item) not in seen:
            seen.add(id(item))
            yield item
            waiting += [item.__cause__, item.__context__, *item.args]

"""The control socket: any line is answered by valid JSON-RPC 2.0, or refused."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

from vtep import Config, Vtep
from vtep.control import jsonrpc
from vtep.control.jsonrpc import OctetStream, Request, RpcError
from vtep.control.methods import Methods
from vtep.errors import VtepError

LEN_MAX = 1024

_RENEW = 2000


class _Still(Vtep):
    """A VTEP that is never started: its tables can be changed, but no port."""

    async def add(self, config: Config) -> None:
        if config.vni not in self.ports:
            self._ports.put(self._make_port(config))

    async def remove(self, vni: int) -> None:
        assert vni >= 0

    async def change(self, config: Config) -> None:
        assert config.vni in self.ports


async def _reload() -> str:
    return "read again"


_loop = asyncio.new_event_loop()
_state: list[Any] = [None, 0]


def _methods() -> Methods:
    """Return the methods of a VTEP; of a new one now and then, since its tables grow."""
    if _state[1] % _RENEW == 0:
        configs = (
            Config(vni=1, remote="192.0.2.2", tap="vx1", proxy=True),
            Config(vni=2, remote="192.0.2.3", tap="vx2"),
        )
        _state[0] = Methods(_Still(*configs), _reload)
    _state[1] += 1
    found: Methods = _state[0]
    return found


async def _call(item: Request) -> Any:
    """Call a method, and end what would last."""
    # The name of a host in a filter would be asked of a name server.
    params = {name: value for name, value in item.params.items() if name != "filter"}
    result = await _methods().call(item.method, params)
    if not isinstance(result, asyncio.Future):
        return result
    if item.method == "trace.live":
        result.cancel()
        await asyncio.wait((result,))
        return None
    result = await result
    if isinstance(result, OctetStream):
        result.source.close()
        return result.result
    return result


def run(data: bytes) -> None:
    message = jsonrpc.decode(data)
    for item in message.items:
        if not isinstance(item, Request):
            _check(jsonrpc.failure(item.error, item.id), item.id)
            continue
        try:
            result = _loop.run_until_complete(_call(item))
        except RpcError as error:
            _check(jsonrpc.failure(error, item.id), item.id)
        except VtepError as error:
            assert str(error)
            assert "\n" not in str(error)
        else:
            if isinstance(result, dict) and item.method.endswith(".batch"):
                assert all("\n" not in each["error"] for each in result["errors"])
            _check(b"".join(jsonrpc.success(result, item.id)), item.id)


def _check(answer: bytes, ident: object) -> None:
    parsed = json.loads(answer)
    assert parsed["jsonrpc"] == "2.0"
    assert parsed["id"] == ident
    assert ("result" in parsed) != ("error" in parsed)


def seeds() -> Iterator[bytes]:
    """Yield a request for each method, with parameters of every kind."""
    values: dict[str, Any] = {
        "vni": 1,
        "mac": "02:00:00:00:00:01",
        "dst": "192.0.2.2",
        "port": 4789,
        "via": "lo",
        "state": "static",
        "ip": "10.0.0.1",
        "tap": "vx1",
        "remote": "192.0.2.9",
        "changes": [
            {"verb": "replace", "mac": "02:00:00:00:00:02", "dst": "192.0.2.2", "sequence": 1}
            | {"extern_learn": True},
            {"verb": "add", "ip": "10.0.0.2", "mac": "02:00:00:00:00:02", "extern_learn": True},
            {"verb": "del", "mac": "02:00:00:00:00:02", "extern_learn": True},
        ],
    }
    for name, method in _methods().table.items():
        for most in (0, 1, len(method.takes)):
            params = {key: values.get(key, 1) for key in method.takes[:most]}
            request = {"jsonrpc": "2.0", "id": 1, "method": name, "params": params}
            yield json.dumps(request).encode()
    yield b'[{"jsonrpc":"2.0","method":"vni.list"},{"jsonrpc":"2.0","id":"x","method":"nothing"}]'

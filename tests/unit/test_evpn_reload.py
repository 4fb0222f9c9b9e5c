"""Reloads of a file with [evpn]: what is logged, what is refused, and files with passwords."""

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_control_methods import Still
from vtep.cli import least_privilege
from vtep.config import Config, Settings
from vtep.config.evpn import EvpnSettings
from vtep.config.loader import read, with_password
from vtep.daemon.reloadable import ReloadableVtep
from vtep.errors import ConfigError
from vtep.evpn.fabric import check_neighbors
from vtep.evpn.supervisor import Supervisor

SESSIONS = '[evpn]\nasn = {}\nneighbor = "{}"\n'


def test_a_reload_says_what_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pyvtep.toml"

    async def keep(*_: object) -> None:
        """Reload no VNI."""

    async def reload(reloadable: ReloadableVtep, text: str) -> str:
        file.write_text(f"vni = []\n{text}")
        return await reloadable.reload()

    async def test() -> None:
        reloadable = ReloadableVtep(Settings(segments=[]), file, check=check_neighbors)
        monkeypatch.setattr(reloadable.vtep, "reload", keep)
        start = f"read {file} again: "
        first = SESSIONS.format(65000, "198.51.100.1")
        assert await reload(reloadable, first) == start + "[evpn] added"
        assert await reload(reloadable, first) == start + "nothing is different"
        second = SESSIONS.format(65001, "198.51.100.1") + "hold-time = 9\n"
        assert await reload(reloadable, second) == start + "[evpn] changed (asn, hold-time)"
        with pytest.raises(ConfigError, match=r"^--evpn-neighbor 127.0.0.1: is an address of this"):
            await reload(reloadable, SESSIONS.format(65001, "127.0.0.1"))
        assert await reload(reloadable, second) == start + "nothing is different"
        assert await reload(reloadable, "") == start + "[evpn] deleted"

    asyncio.run(test())


def test_an_upgrade_says_what_has_changed(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        vtep = Still(Config(vni=1, remote="192.0.2.2", tap="vx0"))
        supervisor = Supervisor(vtep)
        state = dict.fromkeys(("starts", "generation", "last_instance", "flushes"), 1)
        given = {"pid": os.getpid(), "token": "x", "last_error": None, "instances": {}}
        supervisor.adopt(state | given | {"settings": sessions(65000).to_json()}, {})
        for asn in (65001, 65002):  # The second one is a reload.
            supervisor.configure(Settings(segments=[], evpn=sessions(asn)))
        assert supervisor.state()["settings"]["asn"] == 65002
        await supervisor.stop(handed_over=True)

    def sessions(asn: int) -> EvpnSettings:
        return EvpnSettings(asn=asn, neighbor="198.51.100.1", password="secret")

    with caplog.at_level(logging.INFO, "vtep"):
        asyncio.run(test())
    lines = [line for line in caplog.messages if "[evpn]" in line]
    assert lines == ["upgrade: [evpn] changed (asn)"]


def test_files_that_cannot_be_read_again_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tmp_path.chmod(0o755)
    secret, file = tmp_path / "secret", tmp_path / "pyvtep.toml"
    secret.write_text("secret\n")
    file.write_text(
        SESSIONS.format(65000, "198.51.100.1") + f'password-file = "{secret}"\n[[vni]]\nid = 1\n'
    )
    secret.chmod(0o604)
    settings = with_password(read(file), file)
    least_privilege.check_files(settings, file)
    assert [line.partition(": ")[0] for line in caplog.messages] == [str(secret)]
    caplog.clear()
    secret.chmod(0o600)
    monkeypatch.setattr(os, "access", lambda *_: False)
    least_privilege.check_files(settings, None)
    least_privilege.check_files(settings, file)
    user = f"user {os.geteuid()} cannot read "
    assert [line.partition(";")[0] for line in caplog.messages] == [
        f"{user}{secret}: an upgrade will fail",
        f"{user}{file}: a reload will fail",
        f"{user}{secret}: a reload or an upgrade will fail",
    ]


def test_check_config_reads_the_password(tmp_path: Path) -> None:
    def check() -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "vtep", "check-config", file],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    tmp_path.chmod(0o755)
    secret, file = tmp_path / "secret", tmp_path / "pyvtep.toml"
    file.write_text(
        SESSIONS.format(65000, "198.51.100.1") + f'password-file = "{secret}"\n[[vni]]\nid = 1\n'
    )
    code, _, error = check()
    assert (code, error.startswith(f"{file}: password-file {secret}: cannot read it: ")) == (
        2,
        True,
    )
    secret.touch(mode=0o600)
    code, _, error = check()
    assert (code, error.partition("; ")[0]) == (
        2,
        f"{file}: password-file {secret}: its first line is empty",
    )
    secret.write_text("secret\n")
    assert check() == (0, f"{file}: valid; vni 1\n", "")
    secret.chmod(0o644)
    code, _, error = check()
    assert (code, error.partition("; ")[0]) == (
        0,
        f"warning: {secret}: every user of this host can read the password of BGP in it",
    )

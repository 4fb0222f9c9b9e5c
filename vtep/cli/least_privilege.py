"""The privileges of a process that runs a VTEP, as its settings require."""

import logging
import os
from pathlib import Path

from vtep.config import Settings
from vtep.config.evpn_neighbors import BGP_PORT
from vtep.control import socket_files
from vtep.host import privileges
from vtep.host.privileges import Capability

log = logging.getLogger("vtep")


def drop(settings: Settings, *, on_demand: bool = False) -> None:
    """Become the user of the settings, and keep only the capabilities that the VTEP needs.

    To be called while there is one thread. A process `on_demand` may get any VNI later.

    Raises: VtepError if the settings ask for what this process may not do.
    """
    user = privileges.find_user(settings.user) if settings.user is not None else None
    for option in ("control_group", "control_admin_group"):
        if (group := getattr(settings, option)) is not None:  # Else found out after the start.
            privileges.find_group(f"--{option.replace('_', '-')} {group}", group)
    if user is not None and user.uid != 0 and os.geteuid() == 0:
        socket_files.prepare(user.uid, user.gid)
    hosts = {each.docker_host for each in settings.segments if each.docker_network is not None}
    groups: list[int] = []
    if hosts and user is not None:
        # The socket of an engine admits a group, which gives as much power as root has.
        from vtep.docker.client import groups_of  # noqa: PLC0415  few processes need it

        groups = [group for host in hosts for group in groups_of(host)]
    probes = on_demand or bool(hosts)
    privileges.drop(_needed(settings, address_probes=probes), user, groups)


def check_files(settings: Settings, path: Path | None) -> None:
    """Warn if the user that this process runs as now cannot read its files again, or all can.

    `path` is the configuration file. A password of BGP may be there, or in a file of its own.
    """
    secret = settings.evpn.password_file if settings.evpn is not None else None
    files = [(path, "a reload")] if path is not None else []
    if secret is not None:
        files.append((Path(secret), "a reload or an upgrade" if path is not None else "an upgrade"))
    for file, what in files:
        if not os.access(file, os.R_OK):
            log.warning(
                "user %d cannot read %s: %s will fail; to allow it: chgrp %d %s; chmod g+r %s",
                *(os.geteuid(), file, what, os.getegid(), file, file),
            )
    if settings.evpn is not None:
        from vtep.config.loader import exposed_secrets  # noqa: PLC0415  it imports a TOML parser

        for line in exposed_secrets(settings, path):
            log.warning("%s", line)


def _needed(settings: Settings, *, address_probes: bool) -> frozenset[Capability]:
    ports = [port for config in settings.segments for port in (config.dstport, min(config.srcport))]
    if settings.evpn is not None and settings.evpn.listen:
        ports.append(BGP_PORT)  # The speaker inherits the capability.
    return privileges.needed(
        ports,
        address_probes=address_probes,
        unprivileged_port=privileges.first_unprivileged_port(),
    )

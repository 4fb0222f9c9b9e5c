"""The privileges of a process that runs a VTEP, as its settings require."""

import logging
import os
from pathlib import Path

from vtep.config import Settings
from vtep.config.evpn import BGP_PORT
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


def check_config(path: Path | None) -> None:
    """Warn if the user that this process runs as now cannot read the configuration file again."""
    if path is not None and not os.access(path, os.R_OK):
        log.warning(
            "user %d cannot read %s: a reload will fail; to allow it: chgrp %d %s; chmod g+r %s",
            *(os.geteuid(), path, os.getegid(), path, path),
        )


def _needed(settings: Settings, *, address_probes: bool) -> frozenset[Capability]:
    ports = [port for config in settings.segments for port in (config.dstport, min(config.srcport))]
    if settings.evpn is not None and settings.evpn.listen:
        ports.append(BGP_PORT)  # The speaker inherits the capability.
    return privileges.needed(
        ports,
        address_probes=address_probes,
        unprivileged_port=privileges.first_unprivileged_port(),
    )

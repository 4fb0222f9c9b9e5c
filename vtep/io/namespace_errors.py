"""Why a network namespace could not be entered, or no TAP be opened there, and what to do. Pure."""

import errno
import os
from typing import Final

from attrs import frozen

from vtep.io import namespace_child as child

GIVEN_UP: Final = (
    "entering it needs CAP_SYS_ADMIN, which pyvtep gives up at its start; have this VNI there when "
    "it starts, on the command line or in the --config file"
)


@frozen
class Surroundings:
    """The facts of this host that an error may depend on."""

    uid: int
    """The effective user of this process."""
    owner_uid: int | None
    """The owner of the user namespace that is to be entered; None without one below the own one."""
    profile: str = ""
    """The AppArmor profile of this process and its mode, as `name (enforce)`; empty without."""
    restricts_user_namespaces: bool = False
    """True if AppArmor takes the capabilities of unprivileged users in their user namespaces, as
    Ubuntu has it since 24.04 (kernel.apparmor_restrict_unprivileged_userns)."""


def explain(step: str, number: int, tap: str, facts: Surroundings) -> str:
    """Return why a step of the child has failed with an error number, and what to do."""
    is_refused = number in (errno.EPERM, errno.EACCES)
    if is_refused and step in (child.NET, child.USER):
        return _not_entered(step, facts)
    if step == child.DEVICE:
        return f"cannot open /dev/net/tun: {_no_device(number, facts)}"
    if step == child.TAP:
        if is_refused:
            remedy = _remedy_of_apparmor(facts) or (
                "run pyvtep as the user who owns the namespace, or as root"
            )
            return f"no privilege to create {tap} in it: {remedy}"
        if number == errno.EBUSY:
            return f"another process has {tap} in it; choose another name with --tap"
        if number == errno.EINVAL:
            return f"a device {tap} exists in it that is not a free TAP; choose another with --tap"
    return f"{_ACTIONS.get(step, step)}: {os.strerror(number)}"


_ACTIONS = {
    child.NET: "cannot enter it",
    child.USER: "cannot enter its user namespace",
    child.SOCKETS: "cannot open sockets in it",
    child.TAP: "cannot create a TAP in it",
}


def _not_entered(step: str, facts: Surroundings) -> str:
    """Return why the kernel refuses the way into a namespace."""
    owner = facts.owner_uid
    if step == child.NET and owner is None and facts.uid == 0:
        return GIVEN_UP
    if owner is None:
        return f"user {facts.uid} may not enter it; run pyvtep as root"
    if owner != facts.uid:
        return (
            f"user {facts.uid} may not enter it, since it belongs to user {owner}; run pyvtep as "
            "that user"
        )
    return _remedy_of_apparmor(facts) or (
        "the kernel refuses setns(2) although the user owns it, so a seccomp filter forbids that; "
        "in a systemd unit set RestrictNamespaces=no, for a container give "
        "--security-opt seccomp=unconfined"
    )


def _no_device(number: int, facts: Surroundings) -> str:
    """Return why /dev/net/tun cannot be opened."""
    if number == errno.ENOENT:
        return (
            "no such file; load the kernel module (modprobe tun), or pass the device to the "
            "container (--device /dev/net/tun)"
        )
    if number in (errno.ENODEV, errno.ENXIO):
        return "the kernel has no TUN/TAP driver; modprobe tun"
    if number == errno.EACCES:
        remedy = _remedy_of_apparmor(facts)
        return f"permission denied for user {facts.uid}; as root: chmod 666 /dev/net/tun" + (
            f"; or {remedy}" if remedy else ""
        )
    if number == errno.EPERM:
        return (
            "a device cgroup forbids it; in a systemd unit set DeviceAllow=/dev/net/tun rw, for a "
            "container give --device /dev/net/tun"
        )
    return os.strerror(number)


def _remedy_of_apparmor(facts: Surroundings) -> str:
    """Return what to do about AppArmor, if that may be what refuses; else nothing."""
    profile, _, mode = facts.profile.partition(" (")
    if profile not in ("", "unconfined") and mode.startswith("enforce"):
        return (
            f"the AppArmor profile {profile} confines pyvtep: see dmesg for what it denies, and "
            f"allow it, or: aa-complain {profile}"
        )
    if facts.restricts_user_namespaces and facts.uid:
        return (
            "this host restricts user namespaces; as root: sysctl -w "
            "kernel.apparmor_restrict_unprivileged_userns=0, or add an AppArmor profile with "
            "'userns,' for pyvtep"
        )
    return ""

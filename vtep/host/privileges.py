"""The privileges of this process: its user, its capabilities, and what a program it runs can gain.

Capabilities belong to threads, not to the process (capabilities(7)): `drop` is to be called while
there is one thread, from which all later ones inherit. So the start of a VTEP already runs with the
privileges that remain, and anything that fails without more does so at once, not days later.
"""

import ctypes
import grp
import os
import pwd
import struct
import sys
from collections.abc import Iterable
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import Final

from attrs import frozen

from vtep.errors import VtepError


class Capability(IntEnum):
    """A capability, numbered as in the kernel's include/uapi/linux/capability.h."""

    DAC_READ_SEARCH = 2
    """Read files of other users. Kept for root only if the program itself is in a directory that
    root cannot read without it, such as a clone in a home directory of mode 0700: Python reads
    modules when they are first used, and the compiler of the fast path is started later."""
    SETGID = 6
    SETUID = 7
    """Become another user (setresuid(2)), with `--user`. Never kept."""
    SETPCAP = 8
    """Reduce the bounding set (cap_prctl_drop() in security/commoncap.c). Never kept."""
    NET_BIND_SERVICE = 10
    """Bind ports below net.ipv4.ip_unprivileged_port_start (inet_port_requires_bind_service() in
    include/net/ip.h). Kept if a VNI is configured with such a UDP port, and with BGP EVPN."""
    NET_ADMIN = 12
    """Create TAP devices (tun_set_iff() in drivers/net/tun.c), change links, addresses and bridges
    (rtnetlink_rcv_msg() in net/core/rtnetlink.c), attach a tc program, set large socket buffers
    (SO_RCVBUFFORCE in net/core/sock.c), read netfilter rules. Always kept."""
    NET_RAW = 13
    """Open packet sockets (packet_create() in net/packet/af_packet.c) for address probes, and let
    iptables-save read legacy tables. Kept with --docker-network and --on-demand."""
    BPF = 39
    """Load the eBPF program of tunnel GSO (bpf_prog_load() in kernel/bpf/syscall.c), when the
    offload is first used, and again when its TAP was removed. Always kept, since a command may
    enable the offload later."""


# From the kernel's include/uapi/linux/prctl.h and capability.h.
_PR_SET_DUMPABLE: Final = 4
_PR_SET_KEEPCAPS: Final = 8
_PR_CAPBSET_READ: Final = 23
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_RAISE: Final = 2
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_VERSION_3: Final = 0x20080522
_SETS = struct.Struct("=6I")
"""Two struct __user_cap_data_struct: effective, permitted, inheritable; lower words, then upper."""

_ID_MAX: Final = 0xFFFF_FFFE
"""The largest ID of a user or a group: chown(2) takes the next one for "leave it as it is"."""
_ID_DIGITS: Final = 10

_CACHES: Final = Path("/var/cache")
_CACHE_VARIABLES: Final = ("PYVTEP_CACHE_DIR", "CACHE_DIRECTORY")
_PORTS: Final = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_TASKS: Final = Path("/proc/self/task")


@frozen
class User:
    """A user to run as; `home` is None if the user database does not have it."""

    name: str
    uid: int
    gid: int
    home: str | None = None

    @property
    def is_current(self) -> bool:
        """True if this process runs as this user and group already."""
        return (os.getresuid(), os.getresgid()) == ((self.uid,) * 3, (self.gid,) * 3)


def find_user(text: str) -> User:
    """Return the user of `--user NAME|UID[:GROUP]`.

    Raises: VtepError if the host has no such user or group.
    """
    name, _, group = text.partition(":")
    try:
        entry = pwd.getpwuid(int(name)) if name.isdecimal() else pwd.getpwnam(name)
    except (KeyError, OverflowError):
        if name.isdecimal() and group and int(name) > _ID_MAX:
            raise VtepError(
                f"--user {text}: is too large for a user ID, which is at most {_ID_MAX}"
            ) from None
        if not (name.isdecimal() and group):
            raise VtepError(
                f"--user {text}: there is no user {name}; create it: useradd --system {name}"
                if not name.isdecimal()
                else f"--user {text}: user ID {name} has no name, and so no group; give both, as "
                f"in --user {name}:{name}"
            ) from None
        return User(name, int(name), find_group(f"--user {text}", group))
    gid = find_group(f"--user {text}", group) if group else entry.pw_gid
    return User(entry.pw_name, entry.pw_uid, gid, entry.pw_dir)


def find_group(option: str, group: str) -> int:
    """Return the ID of a group, given by name or number.

    `option` is the option with its value, for the error. Raises: VtepError if there is none.
    """
    if group.isdecimal():
        if len(group) > _ID_DIGITS or int(group) > _ID_MAX:
            raise VtepError(f"{option}: is too large for a group ID, which is at most {_ID_MAX}")
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise VtepError(
            f"{option}: there is no group {group}; create it: groupadd --system {group}"
        ) from None


def needed(
    ports: Iterable[int], *, address_probes: bool, unprivileged_port: int
) -> frozenset[Capability]:
    """Return the capabilities that a VTEP needs while it runs.

    Args:
        ports: the UDP and TCP ports that it binds, or the lowest of each range.
        address_probes: it probes for addresses in the segment.
        unprivileged_port: the first port that any user may bind.
    """
    wanted = {Capability.NET_ADMIN, Capability.BPF}
    if any(port < unprivileged_port for port in ports):
        wanted.add(Capability.NET_BIND_SERVICE)
    if address_probes:
        wanted.add(Capability.NET_RAW)
    return frozenset(wanted)


def first_unprivileged_port() -> int:
    """Return the first UDP port that any user may bind in this network namespace."""
    with suppress(OSError, ValueError):
        return int(_PORTS.read_text())
    return 1024


def has_capability(process: int, capability: Capability) -> bool:
    """Return whether a process has a capability in effect; True if that cannot be read."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "CapEff":
                return bool(int(value, 16) >> capability & 1)
    return True


def drop(
    wanted: frozenset[Capability], user: User | None = None, groups: Iterable[int] = ()
) -> None:
    """Reduce the privileges of this process, for good, to the capabilities `wanted`.

    Capabilities that it does not have are not missed here: an ordinary user may run on a TAP that
    root has prepared. With `user`, the process becomes that user, in its group and `groups` only.
    The remaining capabilities are inherited by the programs that it runs.

    Side effects: no_new_privs is set, and the process is not dumpable any more: it writes no core
    file, no other process of its user can trace it, and its files in /proc belong to root.

    Raises: VtepError if the process cannot become the user, or if threads exist.
    """
    _check_single_thread()
    permitted = _permitted()
    changes_user = user is not None and not user.is_current
    if user is not None and changes_user:
        _become(user, groups, permitted)
    kept = {each for each in wanted if each in permitted and _in_bounding_set(each)}
    # Lowered first, and restorable: this shows which files are readable without the rest.
    _set_capabilities(kept | ({Capability.SETPCAP} & permitted), permitted)
    if (unreadable := _unreadable_code()) is not None:
        if user is not None and user.uid != 0:
            raise VtepError(
                f"--user {user.name}: cannot read {unreadable}, where pyvtep is installed; install "
                "it where every user can read it, such as below /opt"
            )
        kept |= {Capability.DAC_READ_SEARCH} & permitted
    if Capability.SETPCAP in permitted:  # Else no_new_privs alone keeps programs from gaining any.
        _reduce_bounding_set(kept)
    _set_capabilities(kept, kept, kept)
    _set_ambient(kept)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    # Last, since the kernel resets it at each change of the user (commit_creds(), kernel/cred.c).
    _prctl(_PR_SET_DUMPABLE, 0)


def _check_single_thread() -> None:
    """Raise VtepError if another thread exists, which would keep its capabilities."""
    with suppress(FileNotFoundError):  # There may be no /proc.
        names = [task.joinpath("comm").read_text().strip() for task in _TASKS.iterdir()]
        if len(names) > 1:
            threads = ", ".join(names)
            raise VtepError(f"cannot drop privileges: threads exist: {threads}; please report it")


def _become(user: User, groups: Iterable[int], permitted: frozenset[int]) -> None:
    """Change the user, the group and the supplementary groups; keep the permitted capabilities.

    Side effects: creates a cache directory for the user unless one is given; sets the variables of
    the environment that name the user's files.

    Raises: VtepError without the privilege.
    """
    if not {Capability.SETUID, Capability.SETGID} <= permitted:
        raise VtepError(
            f"--user {user.name}: only root can become another user (it takes CAP_SETUID and "
            "CAP_SETGID); start pyvtep as root, or as that user"
        )
    _prepare_environment(user)
    _prctl(_PR_SET_KEEPCAPS, 1)  # Else the kernel clears all sets when the last ID of root goes.
    os.setgroups(sorted(set(groups)))
    os.setresgid(user.gid, user.gid, user.gid)
    os.setresuid(user.uid, user.uid, user.uid)
    _prctl(_PR_SET_KEEPCAPS, 0)


def _prepare_environment(user: User) -> None:
    """Make the environment name the files of a user, and not those of root."""
    for name in [each for each in os.environ if each.startswith("XDG_")]:
        del os.environ[name]
    os.environ.update(HOME=user.home or "/", USER=user.name, LOGNAME=user.name)
    if not any(os.environ.get(name) for name in _CACHE_VARIABLES):
        # System users have no home directory, and the fast path keeps compiled code.
        own = _CACHES / f"pyvtep-{user.uid}"
        with suppress(OSError):
            own.mkdir(mode=0o700, exist_ok=True)
            os.chown(own, user.uid, user.gid, follow_symlinks=False)
            os.environ["CACHE_DIRECTORY"] = str(own)


def _unreadable_code() -> str | None:
    """Return a directory of loaded modules, or the interpreter's, that cannot be read; or None."""
    # Strings, since a thousand objects of Path would take 5 ms of the start.
    folders = {os.path.dirname(sys.executable)}  # noqa: PTH120
    for module in tuple(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        if spec is not None and spec.has_location and "." not in spec.name:
            folders.add(os.path.dirname(spec.origin))  # noqa: PTH120
    for folder in sorted(folders):
        try:
            with os.scandir(folder):
                pass
        except PermissionError:
            return folder
        except OSError:  # Such as a path inside a zip file.
            continue
    return None


# --- system calls -------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
"""A handle of libc of our own, so that other users of ctypes do not overwrite errno."""


def _prctl(option: int, *arguments: int) -> int:
    """Call prctl(2). Raises: OSError."""
    # Unused arguments have to be 0 for some options, and all are of type unsigned long.
    padded = [ctypes.c_ulong(each) for each in (*arguments, 0, 0, 0, 0)[:4]]
    result: int = _libc.prctl(ctypes.c_int(option), *padded)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")
    return result


def _header() -> "ctypes.Array[ctypes.c_char]":
    return ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0))


def has(capability: Capability) -> bool:
    """Return whether this process has a capability, in its own user namespace."""
    return capability in _permitted()


def _permitted() -> frozenset[int]:
    """Return the numbers of the permitted capabilities of this thread. Raises: OSError."""
    data = ctypes.create_string_buffer(_SETS.size)
    if _libc.capget(_header(), data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capget: {os.strerror(number)}")
    _, low, _, _, high, _ = _SETS.unpack(data.raw)
    both = low | high << 32
    return frozenset(number for number in range(64) if both >> number & 1)


def _set_capabilities(
    effective: Iterable[int], permitted: Iterable[int], inheritable: Iterable[int] = ()
) -> None:
    """Set the capabilities of this thread. Raises: OSError."""
    masks = [sum(1 << each for each in group) for group in (effective, permitted, inheritable)]
    words = [mask & 0xFFFFFFFF for mask in masks] + [mask >> 32 for mask in masks]
    if _libc.capset(_header(), _SETS.pack(*words)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")


def _in_bounding_set(capability: int) -> bool:
    try:
        return _prctl(_PR_CAPBSET_READ, capability) == 1
    except OSError:  # An older kernel does not know it.
        return False


def _reduce_bounding_set(kept: Iterable[int]) -> None:
    """Remove all other capabilities from the bounding set. Raises: OSError."""
    for number in range(64):
        if number not in kept and _in_bounding_set(number):
            _prctl(_PR_CAPBSET_DROP, number)


def _set_ambient(kept: Iterable[int]) -> None:
    """Pass these capabilities on to programs that are executed, also without root."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for number in kept:
        with suppress(PermissionError):  # The securebits of a container may forbid it.
            _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, number)

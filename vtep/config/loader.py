"""Read configuration files from a disk, a pipe or standard input.

This imports nothing of the data path, so that mistakes in a file are reported at once.
"""

import errno
import stat
from pathlib import Path

from attrs import evolve

from vtep import descriptors
from vtep.config import Settings, evpn_parsers
from vtep.config.file import FileError, parse, parse_all
from vtep.errors import ConfigError, VtepError

_SIZE_MAX = 16 << 20
"""Largest configuration file in octets: a thousand VNIs with a thousand remotes each fit."""


def read(path: Path) -> Settings:
    """Read and parse a configuration file or, of a directory, all its files `*.toml` as one.

    The `password-file` is absolute in them: it is relative to the directory of the files, as the
    working directory of this process changes with --background.
    Raises: FileError if they have mistakes, VtepError if one cannot be read.
    """
    if not path.is_dir():
        # A pipe has no directory with other files.
        folder = Path() if path.is_relative_to("/dev") else path.parent
        return _with_absolute_paths(parse(_read_text(path), str(path)), folder)
    try:
        # In the order of their names, which also decides which of two in conflict is reported.
        files = sorted(each for each in path.iterdir() if _is_part(each))
    except OSError as error:
        raise _unreadable(path, error) from error
    if not files:
        example = path / "vx0.toml"
        raise VtepError(f"{path}: has no configuration file; write one, such as {example}")
    settings = parse_all((str(each), _read_text(each)) for each in files)
    return _with_absolute_paths(settings, path)


def _with_absolute_paths(settings: Settings, folder: Path) -> Settings:
    """Return settings whose files are found in whatever working directory."""
    evpn = settings.evpn
    if evpn is None or evpn.password_file is None:
        return settings
    path = str((folder / evpn.password_file).absolute())
    return evolve(settings, evpn=evolve(evpn, password_file=path))


def with_password(settings: Settings, source: Path | None = None) -> Settings:
    """Return settings with the password of the BGP sessions, if a file has it.

    `source` is the configuration file that the settings are from; None is the command line, whose
    path is made absolute.
    Raises: VtepError if the file cannot be read, ConfigError if it has no valid password.
    """
    settings = _with_absolute_paths(settings, Path())
    evpn = settings.evpn
    if evpn is None or evpn.password_file is None:
        return settings
    path = Path(evpn.password_file)
    option = f"{f'{source}: ' if source is not None else '--evpn-'}password-file {path}"
    try:
        text = _read_bounded(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = descriptors.reason(error) if isinstance(error, OSError) else "is not UTF-8 text"
        raise VtepError(
            f"{option}: cannot read it: {reason}; give a file with the password in its first line"
        ) from error
    if len(text) > _SIZE_MAX:
        raise ConfigError(f"{option}: is not a file with a password in its first line")
    first = text.partition("\n")[0].strip("\r")
    if not first:
        raise ConfigError(f"{option}: its first line is empty; write the password there")
    try:
        evpn_parsers.password(first)
    except ConfigError as error:
        reason = str(error).partition(": ")[2]
        raise ConfigError(f"{option}: its first line {reason}") from None
    return evolve(settings, evpn=evpn.with_password(first))


def exposed_secrets(settings: Settings, source: Path | None) -> list[str]:
    """Return a line for each file with a password of BGP that every user of this host can read.

    `source` is the configuration file, or a directory of them.
    """
    evpn = settings.evpn
    if evpn is None:
        return []
    files: list[Path] = []
    if evpn.password_file is not None:
        files.append(Path(evpn.password_file))
    elif evpn.password is not None and source is not None:
        files.append(source)
    if source is not None and any(each.password is not None for each in evpn.neighbor):
        files.append(source)
    return [
        f"{path}: every user of this host can read the password of BGP in it; to change that: "
        f"chmod 600 {path}"
        for file in dict.fromkeys(files)
        for path in _parts_with_password(file)
        if _is_readable_by_all(path)
    ]


def _parts_with_password(path: Path) -> list[Path]:
    """Return the files of a directory that have a password; a file itself."""
    try:
        if not path.is_dir():
            return [path]
        parts = sorted(each for each in path.iterdir() if _is_part(each))
        return [each for each in parts if b"password" in _read_bounded(each)]
    except OSError:  # Not readable by this process, and so not by all.
        return []


def _is_readable_by_all(path: Path) -> bool:
    # A directory of mode 0700 keeps its files from others. Those above are not looked at.
    try:
        return all(
            each.stat().st_mode & bit
            for each, bit in ((path, stat.S_IROTH), (path.absolute().parent, stat.S_IXOTH))
        )
    except OSError:
        return False


def _is_part(path: Path) -> bool:
    # Editors and package managers leave hidden files and others, such as a.toml~, a.toml.dpkg-new.
    return path.suffix == ".toml" and not path.name.startswith(".")


def _read_text(path: Path) -> str:
    try:
        octets = _read_bounded(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(octets) > _SIZE_MAX:
        raise VtepError(f"{path}: is larger than {_SIZE_MAX >> 20} MiB")
    try:
        return octets.decode().removeprefix("\ufeff")  # Some editors write a byte order mark.
    except UnicodeDecodeError as error:
        line = octets.count(b"\n", 0, error.start) + 1
        raise FileError([f"{path}:{line}: is not UTF-8 text"]) from None


def _unreadable(path: Path, error: OSError) -> VtepError:
    """Return the error for a file or directory that cannot be read, with a remedy if one is known.

    Others have it in their reason.
    """
    another = "; give the path of a file, or of a directory of files *.toml"
    advice = {
        errno.ENOENT: "; write it (its format: man pyvtep.toml), or give another path",
        errno.EACCES: f"; run as root, or allow it: chmod a+r {path}",
        errno.ENOTDIR: another,
        errno.EINVAL: another,
    }.get(error.errno or 0, "")
    return VtepError(f"{path}: cannot read it: {descriptors.reason(error)}{advice}")


def _read_bounded(path: Path) -> bytes:
    """Return at most one octet more than allowed of a file, of /dev/stdin or a shell's <(...).

    Raises: OSError, also for other files that are not regular: reading a FIFO can block for ever.
    """
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_relative_to("/dev"):
        raise OSError(errno.EINVAL, "not a regular file")
    with path.open("rb") as file:
        return file.read(_SIZE_MAX + 1)

"""Reading of configuration files, and the work that they may cause."""

import os
from pathlib import Path

import pytest

from vtep.config import Settings
from vtep.config.evpn import EvpnSettings
from vtep.config.file import FileError
from vtep.config.loader import exposed_secrets, read, with_password
from vtep.config.option_parsers import distinct
from vtep.errors import ConfigError, VtepError


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, why in (
        (pipe, "cannot read it: not a regular file; give the path of a file, or of a directory"),
        (tmp_path, "has no configuration file; write one"),
        (tmp_path / "missing", "cannot read it: No such file or directory; write it "),
        (Path("/dev/zero"), "is larger than 16 MiB"),
    ):
        with pytest.raises(VtepError, match=f"^{path}: {why}"):
            read(path)


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "pyvtep.toml"
    path.write_text("[[vni]]\nid = 5\n", encoding="utf-8-sig")
    assert [config.vni for config in read(path).segments] == [5]


def test_process_substitution_is_read() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"[[vni]]\nid = 5\n")
    os.close(writer)
    (config,) = read(Path(f"/dev/fd/{reader}")).segments
    os.close(reader)
    assert config.vni == 5


def test_the_files_of_a_directory_are_one_configuration(tmp_path: Path) -> None:
    (tmp_path / "b.toml").write_text("mtu = 1400\n[[vni]]\nid = 1\n")
    (tmp_path / "a.toml").write_text('control = "none"\n[[vni]]\nid = 2\n[[vni]]\nid = 3\n')
    (tmp_path / "c.toml").write_text('control = "none"\nvni = []\n')  # The same is no conflict.
    for ignored in ("a.toml~", ".a.toml", "a.toml.dpkg-new", "README"):
        (tmp_path / ignored).write_text("[[vni]]\nid = 9\n")
    settings = read(tmp_path)
    assert [(config.vni, config.mtu) for config in settings.segments] == [
        (2, None),
        (3, None),
        (1, 1400),  # The defaults of a file are for its own segments.
    ]
    assert settings.control == "none"


def test_conflicts_between_files_name_both_lines(tmp_path: Path) -> None:
    a, b = tmp_path / "a.toml", tmp_path / "b.toml"
    a.write_text('control = "none"\n[[vni]]\nid = 1\n[[vni]]\nid = 2\ntap = "x"\n')
    b.write_text(
        'control = "/run/x"\n[[vni]]\nid = 0x1\n[[vni]]\nid = 3\ntap = "x"\n'
        '[[vni]]\nid = 4\ntap = "y"\nmtu = "big"\n[[vni]]\nid = 5\nlocal = "192.0.2.1"\n'
    )
    with pytest.raises(FileError) as caught:
        read(tmp_path)
    first, *others = caught.value.problems
    assert first == f"{b}:1: control: has another value in {a}:1; leave one of them out"
    assert others[0] == (f"{b}:3: id 0x1: defined twice; each VNI can be defined once (see {a}:3)")
    assert others[1] == f"{b}:6: tap x: is given twice; each VNI has its own TAP (see {a}:6)"
    assert others[2].startswith(f"{b}:10: mtu ")
    assert others[3].startswith(f"{b}:")
    assert "id 1 and id 5 share it" in others[3] or "vni 1 and vni 5 share it" in others[3]
    assert others[3].endswith(f"(see {a}:2)")
    assert len(others) == 4


class Counted:
    """A value that counts how often it is compared with others."""

    comparisons = 0

    def __init__(self, number: int) -> None:
        self._number = number

    def __hash__(self) -> int:
        return self._number

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return self is other


def test_values_are_not_all_compared_with_each_other() -> None:
    """A file may have tens of thousands of remotes."""
    values = tuple(map(Counted, range(10_000)))
    assert distinct("--remote", values) is values
    assert Counted.comparisons < 10_000


def test_the_password_of_bgp_sessions_is_read_from_a_file(tmp_path: Path) -> None:
    secret, file = tmp_path / "secret", tmp_path / "file.toml"
    file.write_text(
        f'[evpn]\nasn = 1\nneighbor = "10.0.0.1"\npassword-file = "{secret}"\n[[vni]]\nid = 1\n'
    )
    settings = read(file)
    with pytest.raises(VtepError, match=r"^--evpn-password-file .*: cannot read it: No such file"):
        with_password(settings)
    with pytest.raises(VtepError, match=f"^{file}: password-file {secret}: cannot read it"):
        with_password(settings, file)
    for text, why in (
        ("x" * 81, "is longer than 80 octets"),
        ("a\tb", "is not a text of printable characters"),
    ):
        secret.write_text(text)
        with pytest.raises(ConfigError, match=f"password-file {secret}: its first line {why}$"):
            with_password(settings)
    secret.write_text("\nsecret\n")
    with pytest.raises(VtepError, match=r": its first line is empty; write the password there$"):
        with_password(settings)
    secret.write_bytes(b"\xff\n")
    with pytest.raises(VtepError, match=r": cannot read it: is not UTF-8 text; "):
        with_password(settings)
    secret.write_text("secret\r\nmore\n")
    found = with_password(settings).evpn
    assert found is not None
    assert (found.password, found.password_file) == ("secret", str(secret))
    assert with_password(Settings(segments=[])) == Settings(segments=[])


def test_a_relative_password_file_is_beside_its_configuration_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The working directory is another one at a reload with --background."""
    conf = tmp_path / "conf"
    conf.mkdir()
    (conf / "secret").write_text("beside\n")
    (tmp_path / "secret").write_text("here\n")
    (conf / "a.toml").write_text(
        '[evpn]\nasn = 1\nneighbor = "10.0.0.1"\npassword-file = "secret"\n[[vni]]\nid = 1\n'
    )
    monkeypatch.chdir(tmp_path)
    started = [with_password(read(path), path) for path in (Path("conf/a.toml"), Path("conf"))]
    given = Settings(
        segments=[], evpn=EvpnSettings(asn=1, neighbor="10.0.0.1", password_file="secret")
    )
    commanded = with_password(given)
    monkeypatch.chdir("/")
    reloaded = with_password(read(conf / "a.toml"), conf / "a.toml")
    for settings in (*started, reloaded):
        assert settings.evpn is not None
        assert settings.evpn.password == "beside"
        assert settings.evpn.password_file == str(conf / "secret")
    assert commanded.evpn is not None
    assert commanded.evpn.password == "here"
    assert commanded.evpn.password_file == str(tmp_path / "secret")


def test_passwords_that_every_user_can_read_are_found(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    secret, file, other = (tmp_path / name for name in ("secret", "a.toml", "b.toml"))
    sessions = '[evpn]\nasn = 1\nneighbor = [{{address = "10.0.0.1"{}}}]\n{}[[vni]]\nid = 1\n'
    secret.write_text("secret\n")
    other.write_text("vni = []\n")
    for at_neighbor, common, path in (
        ("", "", None),
        ("", f'password-file = "{secret}"\n', secret),
        ("", 'password = "secret"\n', file),
        (', password = "secret"', "", file),
    ):
        file.write_text(sessions.format(at_neighbor, common))
        for each in (secret, file):
            each.chmod(0o644)
        for source in (file, tmp_path):
            settings = with_password(read(source), source)
            found = exposed_secrets(settings, source)
            assert [line.partition(": ")[0] for line in found] == ([str(path)] if path else [])
        for line in found:
            assert line.endswith(f"; to change that: chmod 600 {path}")
            assert "secret\n" not in line
        for each in (secret, file):
            each.chmod(0o640)
        assert exposed_secrets(settings, file) == []
    file.chmod(0o644)
    tmp_path.chmod(0o700)
    assert exposed_secrets(settings, file) == []
    assert exposed_secrets(Settings(segments=[]), file) == []

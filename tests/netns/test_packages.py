"""The Debian package and the container image, installed on systems that have nothing else."""

import os
import platform
import re
import stat
from functools import partial
from pathlib import Path

import pytest

from tests.netns.engines import Engine
from tests.netns.hosts import DEADLINE, Start, address, ping, segment, wait_until
from tests.netns.test_documentation import commands, section
from tests.packages import ROOT, once, run
from vtep import __version__
from vtep.testing.lab import Host, Lab

# Packages are installed and compressed: on a busy machine this takes minutes.
pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def debian(session_folder: Path) -> Path:
    """Return a tar file of a minimal Debian of this release, with Python."""

    def make(folder: Path) -> None:
        apt = Path("/etc/apt")
        files = [apt / "sources.list", *(apt / "sources.list.d").glob("[du]*.sources")]
        sources = [file for file in files if file.exists() and file.stat().st_size]
        release = platform.freedesktop_os_release()["VERSION_CODENAME"]
        # Without perl, which only the package usrmerge needs, and without files that nothing reads.
        options = (
            *("--quiet", "--variant=apt", "--include=python3-venv,usr-is-merged"),
            "--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
        )
        run("mmdebstrap", *options, release, folder / "root.tar", *sources)

    return once(session_folder / "debian", make) / "root.tar"


@pytest.fixture(scope="module")
def wheels(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheels of all dependencies, for the Python of that Debian."""
    folder = tmp_path_factory.mktemp("wheels")
    run("/usr/bin/python3", "-m", "venv", folder / "pip")
    download = ("-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", folder)
    run(folder / "pip/bin/python", *download, f"{wheel}[docker,metrics,top]")
    return folder


@pytest.fixture
def hosts(lab: Lab) -> tuple[Host, Host]:
    """Return the two hosts of the page."""
    a, b = lab.host("host-106"), lab.host("host-107")
    lab.wire(a, b)
    address(a, "eth0", "172.31.0.106/24")
    address(b, "eth0", "172.31.0.107/24")
    return a, b


# $1 is the clone, $2 a folder for what the commands write, $3 the commands. /opt, /usr/local
# and dist/ of this machine stay as they are. pip takes packages from the cache of this machine.
_SANDBOX = """
set -e
mount --make-rprivate /
for folder in /opt /usr/local; do
    mkdir -p "$2$folder/upper" "$2$folder/work"
    mount -t overlay overlay \
        -o "lowerdir=$folder,upperdir=$2$folder/upper,workdir=$2$folder/work" "$folder"
done
mkdir -p "$2/dist" "$1/dist" "$2/home/.local/bin"
mount --bind "$2/dist" "$1/dist"
export PIP_CACHE_DIR=$("$1/.venv/bin/pip" cache dir) HOME=$2/home MANPAGER=cat
ln -s "$1/.venv/bin/pipx" "$HOME/.local/bin/pipx"
export PATH=$HOME/.local/bin:/usr/local/bin:/usr/bin:/bin
# Root needs no sudo; and no remote answers here.
sudo() { "$1" --version; }
cd "$1"
eval "$3"
"""


@pytest.mark.parametrize("heading", ["pipx", "Virtual environment"])
def test_pipx_and_pip_install_the_wheel_and_remove_it(heading: str, tmp_path: Path) -> None:
    """The commands of the page, with numba by pipx, and without it by pip, to save time."""
    script, expected = [], []
    for _, command, shown in commands("docs/install.md", heading):
        script.append(command if heading == "pipx" else command.replace("[fast]", ""))
        expected += shown
    sandbox = ("unshare", "--mount", "bash", "-c", _SANDBOX, "bash", ROOT, tmp_path)
    printed = run(*sandbox, "set -x; " + "\n".join(script))
    assert set(expected) <= set(printed.splitlines())
    assert "PYVTEP-FDB(8)" in printed
    left = {path.name for path in tmp_path.rglob("pyvtep*") if "dist" not in path.parts}
    assert not left


def is_up(engine: Engine) -> bool:
    log = engine.logs("pyvtep")
    assert "error" not in log, log
    return "UDP port" in log


def run_managed_plugin(engine: Engine, folder: Path) -> None:
    """Run the plug-in that is made of the image in Docker, and restart it in between."""
    engine.shell(str(ROOT / "scripts/plugin"), str(folder), "--image", "pyvtep")
    engine.docker("plugin", "create", "pyvtep", str(folder))
    engine.docker("plugin", "enable", "pyvtep")
    engine.docker(
        *("network", "create", "-d", "pyvtep:latest", "--ipam-driver", "pyvtep:latest"),
        *("-o", "vni=200", "-o", "remote=172.31.0.107", "--subnet", "10.18.0.0/16", "managed"),
    )
    for options in ((), ("--ip", "10.18.0.9")):
        engine.container("box", "managed", *options)
        wait_until(partial(engine.reaches, "box", "10.18.0.1"), "a ping to the gateway")
        engine.docker("rm", "--force", "box")
        engine.docker("plugin", "disable", "--force", "pyvtep")
        engine.docker("plugin", "enable", "pyvtep")
    engine.docker("network", "rm", "managed")
    engine.docker("plugin", "rm", "--force", "pyvtep")


def test_the_image_joins_two_hosts(
    debian: Path, wheel: Path, wheels: Path, hosts: tuple[Host, Host], tmp_path: Path
) -> None:
    """The commands of the page, with a Debian as base, since there is no registry here."""
    built, *following = section("docs/install.md", "Container image")
    assert built[1] == ["scripts/image"]
    with Engine(hosts[0]) as first, Engine(hosts[1]) as second:
        engines = {"host-106": first, "host-107": second}
        first.docker("import", str(debian), "debian-python")
        first.shell(
            str(ROOT / "scripts/image"),
            *("--light", "--base", "debian-python"),
            *("--wheel", str(wheel), "--wheels", str(wheels)),
        )
        for engine in engines.values():  # As udev makes it. It is closed on some test machines.
            device = "mknod -m 666 /run/tun c 10 200 && mount --bind /run/tun /dev/net/tun"
            engine.shell("sh", "-c", device)
        run_managed_plugin(first, tmp_path / "plugin")
        image = tmp_path / "image.tar"
        first.docker("save", "--output", str(image), f"pyvtep:{__version__}", "pyvtep:latest")
        second.docker("load", "--input", str(image))
        for prompt, words, _ in following:
            engine = engines[prompt]
            if words[:2] == ["docker", "run"]:
                engine.docker(*words[1:])
                wait_until(partial(is_up, engine), "pyvtep to be up")
            elif words[0] == "docker":
                engine.docker(*words[1:])
            else:
                assert words == ["ping", "10.0.0.1"]
                ping(engine.host, "10.0.0.1")
                status = engine.docker("exec", "pyvtep", "cat", "/proc/1/status")
                assert re.search("^Uid:\t65532\t65532\t65532\t65532$", status, re.MULTILINE)
                assert re.search("^CapPrm:\t0000000000001000$", status, re.MULTILINE), status
        assert "pyvtep" not in first.docker("image", "ls")


def test_the_debian_package_is_installed_runs_and_is_removed(
    debian: Path, wheel: Path, hosts: tuple[Host, Host], start: Start, tmp_path: Path
) -> None:
    """The commands of the page, in a root directory that has nothing but Python."""
    root = tmp_path / "root"
    (root / "dist").mkdir(parents=True)
    run("tar", "--extract", "--file", debian, "--directory", root)
    chroot = ("unshare", "--mount", "--pid", "--fork", f"--mount-proc={root}/proc", "chroot", root)
    a, b = hosts
    built, *following = [words for _, words, _ in section("docs/install.md", "Debian package")]
    assert built == ["scripts/deb"]
    compression = {**os.environ, "DEB_COMPRESSION": "-z1"}  # To save time.
    run(ROOT / "scripts/deb", "--light", "--wheel", wheel, root / "dist", env=compression)
    (package,) = (root / "dist").iterdir()
    assert run("lintian", "--allow-root", package, check=False) == ""
    for words in following:
        if words[0] == "apt":
            run(*chroot, "apt", "--yes", *words[1:])
        if words[:2] == ["apt", "install"]:
            assert run(*chroot, "pyvtep", "--version") == f"pyvtep {__version__}\n"
            files = run(*chroot, "dpkg", "-L", "pyvtep").split()
            assert "/usr/share/man/man8/pyvtep-fdb.8.gz" in files
            assert "/usr/share/bash-completion/completions/pyvtep" in files
            (root / "dev/net").mkdir(exist_ok=True)
            os.mknod(root / "dev/net/tun", 0o666 | stat.S_IFCHR, os.makedev(10, 200))
            options = segment(1, "172.31.0.107", "10.0.0.1/24")
            mounts = 'mount -t proc proc "$0/proc" && exec chroot "$0" pyvtep "$@"'
            installed = a.start("unshare", "--mount", "sh", "-c", mounts, str(root), *options)
            start(b, *segment(1, "172.31.0.106", "10.0.0.2/24"))
            ping(b, "10.0.0.1")
            installed.terminate()
            assert installed.wait(DEADLINE) == 0
            # No file was changed; those that this system excludes are missing.
            verified = run(*chroot, "dpkg", "--verify", "pyvtep").splitlines()
            assert all("/usr/share/doc/" in row for row in verified), verified
    assert not (root / "usr/lib/pyvtep").exists()
    assert not (root / "usr/bin/pyvtep").is_symlink()

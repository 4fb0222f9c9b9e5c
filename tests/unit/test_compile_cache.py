"""The directory of compiled code: which one is used, and when it is removed."""

import ast
import errno
import os
import tempfile
from pathlib import Path

import pytest

from vtep.daemon import compile_cache
from vtep.daemon.compile_cache import (
    SOURCES,
    VARIABLE,
    CacheError,
    CompileCache,
    candidates,
    cpu_model,
    digest_of,
    find_root,
    refusal,
    superseded,
)

PACKAGE = Path(compile_cache.__file__).parents[1]
NOW = 1_000_000.0


def unexpected(_seconds: float) -> None:
    pytest.fail("another process has the lock")


@pytest.mark.parametrize(
    ("environ", "uid", "home", "expected"),
    [
        ({}, 0, "/root", ["/root/.cache/pyvtep", "/var/cache/pyvtep", "/tmp/pyvtep-0"]),
        ({}, 5, None, ["/tmp/pyvtep-5"]),
        ({"XDG_CACHE_HOME": "/x"}, 5, "/home/u", ["/x/pyvtep", "/tmp/pyvtep-5"]),
        (
            {"CACHE_DIRECTORY": "/var/cache/a:/var/cache/b", "XDG_RUNTIME_DIR": "/run/user/5"},
            5,
            "/home/u",
            ["/var/cache/a", "/home/u/.cache/pyvtep", "/run/user/5/pyvtep", "/tmp/pyvtep-5"],
        ),
        ({"TMPDIR": "/t", "XDG_CACHE_HOME": "relative"}, 5, None, ["/t/pyvtep-5"]),
        ({VARIABLE: "/mine", "CACHE_DIRECTORY": "/var/cache/a"}, 0, "/root", ["/mine"]),
        ({VARIABLE: "", "TMPDIR": ""}, 5, None, ["/tmp/pyvtep-5"]),
    ],
)
def test_the_candidates(
    environ: dict[str, str], uid: int, home: str | None, expected: list[str]
) -> None:
    assert candidates(environ, uid, home) == [Path(path) for path in expected]


@pytest.mark.parametrize(
    ("owner", "mode", "is_parent", "reason"),
    [
        (5, 0o700, False, None),
        (5, 0o755, False, None),
        (0, 0o755, False, "belongs to another user"),
        (0, 0o755, True, None),
        (6, 0o755, True, "belongs to another user"),
        (5, 0o770, False, "can be written by other users"),
        (5, 0o707, False, "can be written by other users"),
        (5, 0o777, True, "can be written by other users"),
        (0, 0o1777, True, None),
        (5, 0o1777, False, "can be written by other users"),
    ],
)
def test_what_is_safe_for_user_5(
    owner: int, mode: int, is_parent: bool, reason: str | None
) -> None:
    found = refusal(Path("/d"), owner, mode, 5, is_parent=is_parent)
    assert found is None if reason is None else found is not None and reason in found


def test_the_first_usable_directory_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to("open")
    bad = [tmp_path / "file/a", tmp_path / "open", tmp_path / "open/a", tmp_path / "link"]
    paths = [*bad, tmp_path / "new/deep"]
    monkeypatch.setattr(compile_cache, "candidates", lambda *_: paths)
    before = os.umask(0)
    try:
        assert find_root() == tmp_path / "new/deep"
    finally:
        os.umask(before)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in ("new", "new/deep")] == [0o700] * 2
    del paths[-1]
    with pytest.raises(CacheError, match=r"code: .*/file is not a directory; set PYVTEP_CACHE_DIR"):
        find_root()


def test_no_home_directory_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in (VARIABLE, "CACHE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(os, "geteuid", lambda: 5)
    monkeypatch.setattr(compile_cache, "_check", lambda _: None)
    assert find_root() == tmp_path / "tmp/pyvtep-5"
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]


def test_a_complete_cache_may_be_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_cache, "find_digest", lambda: f"{0:016x}")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    cache = complete(tmp_path)
    # Root can write anywhere but on a read-only file system.
    monkeypatch.setattr(os, "access", lambda *_: False)
    found = CompileCache.find()
    proof = found.read_proof()
    assert found == cache
    assert proof
    monkeypatch.setattr(tempfile, "mkstemp", raise_read_only)
    found.claim(proof).release()
    # A directory that others can write is no more safe for being complete.
    cache.directory.chmod(0o777)
    with pytest.raises(CacheError):
        CompileCache.find()


def raise_read_only(**_options: object) -> None:
    raise OSError(errno.EROFS, "Read-only file system")


def test_the_processor_is_identified_by_its_model() -> None:
    first = "processor\t: 0\nmodel name\t: A\ncpu MHz\t\t: 2000\nflags\t\t: avx\n"
    assert cpu_model(f"{first}\nprocessor\t: 1\nmodel name\t: B\n") == "\n".join(
        ("model name\t: A", "flags\t\t: avx")
    )


def test_parts_of_a_digest_do_not_run_together() -> None:
    assert digest_of([b"a", b"bc"]) != digest_of([b"ab", b"c"])
    assert digest_of([b"a"]) == digest_of(iter([b"a"]))


def test_what_is_not_used_any_more_is_superseded() -> None:
    hours = {name: NOW - 3600 * age for name, age in {"a": 9, "b": 8, "c": 0.5, "d": 7}.items()}
    assert superseded(hours, "a", NOW) == ["b"]
    assert superseded(hours, "new", NOW) == ["b", "a"]
    # Several versions may be in use at the same time, however many they are.
    assert superseded(dict.fromkeys("abcdef", NOW - 10), "a", NOW) == []


def test_pruning(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path, f"{0:016x}")
    with cache.locked(unexpected):
        pass
    for number in range(1, 6):
        other = tmp_path / f"{number:016x}"
        other.mkdir()
        (other / "complete").touch()
        os.utime(other / "complete", (0, 1000 * number))
    (tmp_path / "of the user").mkdir()
    cache.prune()
    kept = {f"{number:016x}" for number in (0, 4, 5)}
    assert {path.name for path in tmp_path.iterdir()} == {"lock", "of the user", *kept}


def complete(tmp_path: Path) -> CompileCache:
    """Return a cache with two files of compiled code."""
    cache = CompileCache(tmp_path, f"{0:016x}")
    with cache.locked(unexpected):
        assert not cache.is_complete()
        folder = cache.directory / "fastpath_1"
        folder.mkdir()
        (folder / "a b.nbc").write_bytes(b"code")
        (folder / "a.nbi").write_bytes(b"index")
        cache.mark_complete()
    return cache


def test_the_marker_is_what_makes_a_cache_complete(tmp_path: Path) -> None:
    cache = complete(tmp_path)
    os.utime(cache.directory / "complete", (0, 0))
    assert cache.is_complete()
    assert cache.read_proof()
    assert (cache.directory / "complete").stat().st_mtime > 0, "its use is not noted"
    cache.discard()
    assert not cache.is_complete()
    assert list(cache.directory.iterdir()) == []


@pytest.mark.parametrize("name", ["complete", "fastpath_1/a b.nbc", "fastpath_1/a.nbi"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_a_damaged_file_is_noticed(tmp_path: Path, name: str, damage: str) -> None:
    cache = complete(tmp_path)
    path = cache.directory / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        flipped = content[:-1] + bytes((content[-1] ^ 1,))
        path.write_bytes({"flip": flipped, "truncate": content[:-1], "empty": b""}[damage])
    assert cache.read_proof() is None


def test_the_claim_of_a_dead_process_stays_until_the_code_is_loaded(tmp_path: Path) -> None:
    cache = complete(tmp_path)
    proof = cache.read_proof()
    assert proof
    child = os.fork()
    if not child:
        cache.claim(proof)
        os._exit(0)
    os.waitpid(child, 0)
    alive = cache.claim(proof)
    assert cache.find_crashes() == [proof.stamp]
    cache.discard()
    assert cache.find_crashes() == [proof.stamp], "compiling anew is no success"
    cache.forget_crashes()
    assert len(list(cache.directory.iterdir())) == 1, "not that of a living process"
    alive.release()
    assert list(cache.directory.iterdir()) == []


def test_one_process_at_a_time_has_the_lock(tmp_path: Path) -> None:
    cache = CompileCache(tmp_path, f"{0:016x}")

    def give_up(_seconds: float) -> None:
        raise TimeoutError

    with cache.locked(unexpected), pytest.raises(TimeoutError), cache.locked(give_up):
        pass
    with cache.locked(unexpected):
        pass


def test_the_digest_covers_all_that_compiled_code_imports() -> None:
    """Constants and functions of other modules are part of the compiled code."""
    covered = {path for pattern in SOURCES for path in PACKAGE.glob(pattern)}
    imported = set()
    for path in (PACKAGE / "fastpath").glob("*.py"):
        if path.stem in ("load", "state", "table", "origins"):  # They contain no compiled code.
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vtep."):
                base = PACKAGE.parent / str(node.module).replace(".", "/")
                names = [base / f"{alias.name}.py" for alias in node.names]
                imported |= {file for file in (base.with_suffix(".py"), *names) if file.exists()}
    assert imported - covered == set()

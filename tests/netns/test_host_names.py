"""Host names as remotes, with a name server whose records change."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.netns.hosts import Pair, Pyvtep, Start, ping, pyvtep, udp_socket, wait_until
from vtep.testing.lab import Host

SERVER = "192.0.2.53"
FLEET = "fleet.example."


class NameServer:
    """A name server with few records, each with a TTL of 0 unless it has another one.

    It answers as an authoritative server does: with the CNAME and its target, with no records for
    a name that has others, and with NXDOMAIN.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.records: dict[str, list[tuple[int, str, str]]] = {}
        """TTL, type and value by name."""
        self.has_failed = False
        self.questions: list[tuple[str, str]] = []

    def serve(self) -> None:
        """Answer until the socket is closed."""
        with suppress(OSError):
            while True:
                octets, client = self._socket.recvfrom(4096)
                if not octets:  # It was shut down.
                    return
                self._socket.sendto(self._answer(dns.message.from_wire(octets)).to_wire(), client)

    def _answer(self, query: dns.message.Message) -> dns.message.Message:
        answer = dns.message.make_response(query)
        answer.flags |= dns.flags.RA
        (question,) = query.question
        kind = dns.rdatatype.to_text(question.rdtype)
        name = question.name.to_text().lower()
        self.questions.append((name, kind))
        if self.has_failed:
            answer.set_rcode(dns.rcode.SERVFAIL)
            return answer
        if name not in self.records:
            answer.set_rcode(dns.rcode.NXDOMAIN)
        for ttl, type_, value in self.records.get(name, ()):
            if type_ in (kind, "CNAME"):
                answer.answer.append(dns.rrset.from_text(name, ttl, "IN", type_, value))
            if type_ == "CNAME":
                target = [row for row in self.records.get(value, ()) if row[1] == kind]
                for ttl_, _, address in target:
                    answer.answer.append(dns.rrset.from_text(value, ttl_, "IN", kind, address))
        return answer


@contextmanager
def name_server(host: Host) -> Iterator[NameServer]:
    host.run("ip", "addr", "add", f"{SERVER}/24", "dev", "eth0")
    sock = udp_socket(host, SERVER, 53)
    sock.settimeout(None)
    server = NameServer(sock)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        with suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)  # Wakes the thread.
        sock.close()
        thread.join()


def resolving(folder: Path, hosts: str = "") -> tuple[str, ...]:
    """Return the prefix of commands that use the name server, by /etc as they see it."""
    files = {
        "resolv.conf": f"nameserver {SERVER}\nsearch example\noptions timeout:1 attempts:1\n",
        "hosts": f"127.0.0.1 localhost\n{hosts}\n",
        "nsswitch.conf": "hosts: files dns\n",
    }
    script = []
    for name, text in files.items():
        file = folder / name
        file.write_text(text)
        script.append(f"mount --bind {file} /etc/{name}")
    script.append('exec "$@"')
    return ("unshare", "--mount", "sh", "-ec", "; ".join(script), "sh")


def config(folder: Path, host: Host, own: str, remote: str) -> str:
    file = folder / f"{host.name}.toml"
    file.write_text(
        f'[[vni]]\nid = 1\nremote = {remote}\ntap = "vx0"\naddress = "{own}/24"\n'
        "fast-path = false\n"
    )
    return str(file)


def remotes(vtep: Pyvtep) -> list[str]:
    with vtep.client() as client:
        return [row["dst"] for row in client.remote.show()]


def until_remotes(vtep: Pyvtep, *wanted: str) -> None:
    wait_until(lambda: remotes(vtep) == [*wanted], f"{vtep.host.name} to have {wanted}")


def test_one_name_for_the_fleet_follows_dns(pair: Pair, start: Start, tmp_path: Path) -> None:
    a, b = pair
    prefix = resolving(tmp_path)
    with name_server(b) as server:
        # The name does not exist yet. It has no dot: the search domain completes it.
        one, two = (
            start(host, "--config", config(tmp_path, host, own, '"fleet"'), prefix=prefix)
            for host, own in ((a, "10.0.0.1"), (b, "10.0.0.2"))
        )
        wait_until(lambda: "--remote fleet: there is no such name; it is" in one.log, "a log line")
        assert "vni 1  vx0  waiting" in (shown := pyvtep_status(one))
        assert "name fleet  no address (there is no such name)" in shown
        assert "problem: vni 1: --remote fleet: there is no such name" in shown
        assert "no address  fleet" in one.run("remote", "show")
        assert "fleet (no address)" in one.run("vni", "show")
        # It appears, as an alias; all hosts have the same name, each leaves itself out.
        server.records |= {
            FLEET: [(0, "CNAME", "all.example.")],
            "all.example.": [(604800, "A", "192.0.2.1"), (604800, "A", "192.0.2.2")],
        }
        until_remotes(one, "192.0.2.2")
        until_remotes(two, "192.0.2.1")
        ping(a, "10.0.0.2")
        ping(b, "10.0.0.1")
        assert "192.0.2.2  fleet" in one.run("remote", "show")
        wait_until(lambda: "vni 1  vx0  up" in pyvtep_status(one, code=0), "no problem")
        # The smallest TTL of the chain is 0, which is taken for some seconds: b moves.
        b.run("ip", "addr", "add", "192.0.2.3/24", "dev", "eth0")
        server.records["all.example."] = [
            *((604800, "A", "192.0.2.1"), (604800, "A", "192.0.2.3")),
            # Of both versions, one is used.
            (604800, "AAAA", "2001:db8::2"),
        ]
        until_remotes(one, "192.0.2.3")
        assert "fleet is 192.0.2.1, 192.0.2.3, 2001:db8::2, was 192.0.2.1, 192.0.2.2" in one.log
        # The server fails: the last addresses stay, also in the process that takes over.
        server.has_failed = True
        one.run("reload")
        wait_until(lambda: "fleet: no name server has answered; it keeps 192." in one.log, "a line")
        assert remotes(one) == ["192.0.2.3"]
        before = one.log.count("fleet: no name server has answered")
        one.run("upgrade")
        assert remotes(one) == ["192.0.2.3"]
        wait_until(
            lambda: one.log.count("fleet: no name server has answered") > before, "the new process"
        )
        assert remotes(one) == ["192.0.2.3"]
        assert "192.0.2.3 of its last answer stay its remotes" in joined(pyvtep_status(one))
        # And what the doctor says.
        found = pyvtep(a, "doctor", "--socket", str(one.control)).stdout
        assert "--remote fleet cannot be looked up: no name server has answered" in found
        server.has_failed = False
        one.run("reload")
        wait_until(lambda: "vni 1  vx0  up" in pyvtep_status(one, code=0), "no problem")
        # Names of a running pyvtep: from /etc/hosts, then none.
        (tmp_path / "hosts").write_text("127.0.0.1 localhost\n192.0.2.2 b.test\n")
        one.run("remote", "add", "b.test")
        until_remotes(one, "192.0.2.3", "192.0.2.2")
        one.run("remote", "del", "fleet")
        assert remotes(one) == ["192.0.2.2"]
        assert "is an address of --remote b.test" in one.run("remote", "del", "192.0.2.2", code=1)


def pyvtep_status(vtep: Pyvtep, code: int = 1) -> str:
    done = pyvtep(vtep.host, "status", "--socket", str(vtep.control))
    return done.stdout if done.returncode == code else ""


def joined(text: str) -> str:
    return " ".join(text.split())

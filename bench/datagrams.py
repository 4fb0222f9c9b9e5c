"""A sender and a receiver of UDP datagrams that are faster than what they measure.

    python -m bench.datagrams send HOST PORT OCTETS RATE SECONDS FLOWS
    python -m bench.datagrams receive HOST PORT

Both print their result as one line of JSON. iperf3 makes a system call and reads the clock for each
datagram, which limits it to some 180,000 a second here: of a faster tunnel, it would measure only
itself. These two pass many datagrams at a time (sendmmsg, recvmmsg), without segmentation
offload.
"""

import ctypes
import itertools
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

_SEND_AT_ONCE = 32
_RECEIVE_AT_ONCE = 256

_STEP = 150e-6
"""Interval between sends in seconds, about the accuracy of kernel timers."""

_LATE = 0.005
"""Delay in seconds above which the sender does not catch up, which would be a burst."""

_RECEIVE_BUFFER = 1 << 20
_SO_RCVBUFFORCE = 33

_FIRST_PORT = 20000
"""Source port of the first flow; the others follow. Fixed ports give each run the same hashes."""


class _Iovec(ctypes.Structure):
    """struct iovec, of uio.h."""

    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr, of socket.h."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(_Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class _Message(ctypes.Structure):
    """struct mmsghdr, of socket.h."""

    _fields_ = (("header", _Header), ("octets", ctypes.c_uint))


class _Batch:
    """An array of messages that share one payload."""

    def __init__(self, count: int, octets: int) -> None:
        self._memory = ctypes.create_string_buffer(os.urandom(octets), octets)
        self._iovec = _Iovec(ctypes.addressof(self._memory), octets)
        self.messages = (_Message * count)()
        for message in self.messages:
            message.header.iov = ctypes.pointer(self._iovec)
            message.header.iovlen = 1


def _check(count: int) -> int:
    if count < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return count


def _one_flow(sock: socket.socket, octets: int, at_once: int) -> Callable[[], int]:
    """Return a function that sends some datagrams and returns their number."""
    call = ctypes.CDLL(None, use_errno=True).sendmmsg
    batch = _Batch(at_once, octets)
    return lambda: _check(call(sock.fileno(), batch.messages, at_once, 0))


def _many_flows(socks: list[socket.socket], octets: int, at_once: int) -> Callable[[], int]:
    """Return such a function that sends one datagram from each socket in turn.

    sendmmsg sends from one socket, which has one source port. So this makes a system call for each
    datagram: 2.7 us into a veth here, where sendmmsg takes 2.0.
    """
    payload = os.urandom(octets)
    turns = itertools.cycle([sock.send for sock in socks])

    def send_some() -> int:
        for send_one in itertools.islice(turns, at_once):
            send_one(payload)
        return at_once

    return send_some


def send(
    host: str, port: int, octets: int, rate: float, seconds: float, flows: int = 1
) -> dict[str, float]:
    """Send `rate` datagrams a second, or as many as possible if it is 0, for some seconds.

    Several flows have one datagram each in turn, so that no two neighbours are of one flow.
    """
    at_once = max(1, min(_SEND_AT_ONCE, int(rate * _STEP))) if rate else _SEND_AT_ONCE
    with ExitStack() as stack:
        socks = [
            stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            for _ in range(flows)
        ]
        for number, sock in enumerate(socks):
            sock.bind(("", _FIRST_PORT + number))
            sock.connect((host, port))
        if flows == 1:
            send_some = _one_flow(socks[0], octets, at_once)
        else:
            send_some = _many_flows(socks, octets, at_once)
        begin = now = due = time.perf_counter()
        sent = 0
        while now < begin + seconds:
            if rate:
                if now < due:
                    time.sleep(due - now)
                due = max(due, now - _LATE) + at_once / rate
            sent += send_some()
            now = time.perf_counter()
    return {"datagrams": sent, "seconds": now - begin}


def receive(host: str, port: int) -> dict[str, float]:
    """Receive until standard input is closed; also report the time from first to last."""
    call = ctypes.CDLL(None, use_errno=True).recvmmsg
    batch = _Batch(_RECEIVE_AT_ONCE, 1)  # The kernel truncates longer ones.
    got, first, last = 0, 0.0, 0.0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        sock.bind((host, port))
        sock.setblocking(False)
        print("ready", flush=True)
        while True:
            readable, _, _ = select.select([sock, sys.stdin], [], [])
            if sock in readable:
                got += _check(call(sock.fileno(), batch.messages, _RECEIVE_AT_ONCE, 0, None))
                last = time.perf_counter()
                first = first or last
            elif sys.stdin in readable:
                return {"datagrams": got, "seconds": last - first}


def main(command: str, *words: str) -> None:
    """Send or receive, by the command line."""
    if command == "send":
        host, port, octets, rate, seconds, flows = words
        done = send(host, int(port), int(octets), float(rate), float(seconds), int(flows))
    else:
        host, port = words
        done = receive(host, int(port))
    print(json.dumps(done))


if __name__ == "__main__":
    main(*sys.argv[1:])

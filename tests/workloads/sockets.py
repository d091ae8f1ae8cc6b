#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds sockets of every kind, and checks them itself when it is asked: a program to freeze.

    sockets.py             sets everything up and waits
    sockets.py check WHAT  run in the same container: prints a JSON object, name of a check -> "ok" or what is wrong.
                           WHAT says what must have become of connections: as they were, auto, keep, close

environment: PEER_HOST, PEER_PORT (a server outside the pod that says "hello" and then keeps silent)
"""

import json
import os
import select
import socket
import sys
import threading
import time

CONTROL = "/tmp/sockets.control"
QUEUED = os.urandom(100_000)
PORT = 7000
# Far longer than anything here takes, so that only a hang reaches it.
PATIENCE_SECONDS = 20

V4, V6 = socket.AF_INET, socket.AF_INET6


def own_address(family):
    """The address from which this pod talks to others; no packet is sent."""
    probe = socket.socket(family, socket.SOCK_DGRAM)
    probe.connect(("10.88.0.1" if family == V4 else "fd88::1", 9))
    with probe:
        return probe.getsockname()[0]


def read_exactly(sock, size):
    data = bytearray()
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise AssertionError(f"ended after {len(data)} of {size} bytes")
        data += chunk
    return bytes(data)


def next_port():
    global PORT
    PORT += 1
    return PORT


class Listener:
    """Echoes. `expect` gives the address that it must be bound to at the time of a check."""

    def __init__(self, family, bind, expect, clients, v6only=None, reuse=0):
        self.expect, self.clients, self.family = expect, clients, family
        self.port = next_port()
        self.socks = [self.one(family, bind, v6only, reuse) for _ in range(max(1, reuse))]

    def one(self, family, bind, v6only, reuse):
        sock = socket.socket(family, socket.SOCK_STREAM)
        if v6only is not None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        if reuse:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((bind, self.port))
        sock.listen(16)
        threading.Thread(target=self.serve, args=(sock,), daemon=True).start()
        return sock

    @staticmethod
    def serve(sock):
        while True:
            conn, _ = sock.accept()
            with conn:
                conn.sendall(conn.recv(100))

    def check(self, _):
        for sock in self.socks:
            name = sock.getsockname()[0]
            assert name == self.expect(), f"bound to {name}, not {self.expect()}"
        for client in self.clients:
            with socket.create_connection((client(), self.port), timeout=PATIENCE_SECONDS) as conn:
                conn.sendall(b"ping")
                assert read_exactly(conn, 4) == b"ping"


class Datagram:
    """A UDP socket that is bound, or bound and connected."""

    def __init__(self, family, bind, expect, peer=None):
        self.expect, self.peer = expect, peer
        self.sock = socket.socket(family, socket.SOCK_DGRAM)
        self.sock.bind((bind, next_port()))
        self.sock.settimeout(PATIENCE_SECONDS)
        if peer:
            self.sock.connect(peer)

    def check(self, _):
        name = self.sock.getsockname()
        assert name[0] == self.expect(), f"bound to {name[0]}, not {self.expect()}"
        if self.peer:
            assert self.sock.getpeername()[:2] == self.peer, self.sock.getpeername()
            return
        with socket.socket(self.sock.family, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"ping", name[:2])
            assert self.sock.recv(10) == b"ping"


class Inside:
    """A connection inside the pod with data queued both ways; the program frozen here has both ends."""

    def __init__(self, family, address, mapped=False):
        self.address = address
        host = "::" if mapped else address()
        with socket.socket(V6 if mapped else family, socket.SOCK_STREAM) as listener:
            listener.bind((host, 0))
            listener.listen()
            self.client = socket.create_connection((address(), listener.getsockname()[1]))
            self.server, _ = listener.accept()
        self.queued = True
        self.client.sendall(QUEUED)
        self.server.sendall(QUEUED[::-1])

    def check(self, what):
        ends = (self.client, self.server)
        if what == "close":
            return [closed(end) for end in ends]
        if what != "before":
            for end in ends:
                assert self.address() in end.getpeername()[0], (end.getpeername(), self.address())
                end.settimeout(PATIENCE_SECONDS)
            if self.queued:
                assert read_exactly(self.server, len(QUEUED)) == QUEUED, "queued data changed"
                assert read_exactly(self.client, len(QUEUED)) == QUEUED[::-1], "queued data changed"
                self.queued = False
            for sender, receiver in (ends, ends[::-1]):
                sender.sendall(b"more")
                assert read_exactly(receiver, 4) == b"more"


class LastWords:
    """The other end has said something and closed. What it said is still to be read, and then the end."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            self.sock, _ = listener.accept()
        client.sendall(b"goodbye")
        client.close()
        time.sleep(0.1)
        self.sock.settimeout(PATIENCE_SECONDS)
        self.read = False

    def check(self, what):
        if what == "close":
            return closed(self.sock)
        if what != "before" and not self.read:
            assert read_exactly(self.sock, 7) == b"goodbye"
            assert self.sock.recv(1) == b""
            self.read = True


class HalfClosed:
    """One direction of a connection is shut down, the other is in use."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.client = socket.create_connection(listener.getsockname())
            self.server, _ = listener.accept()
        self.client.sendall(b"request")
        self.client.shutdown(socket.SHUT_WR)
        self.server.sendall(b"answer")
        self.read = False

    def check(self, what):
        if what == "close":
            return [closed(end) for end in (self.client, self.server)]
        if what != "before" and not self.read:
            self.client.settimeout(PATIENCE_SECONDS)
            self.server.settimeout(PATIENCE_SECONDS)
            assert read_exactly(self.server, 7) == b"request"
            assert self.server.recv(1) == b""
            self.server.sendall(b"the rest")
            assert read_exactly(self.client, 14) == b"answerthe rest"
            self.read = True


class Waiting:
    """A connection to the outside, on which a thread waits for data in a system call."""

    def __init__(self, wait):
        self.sock = socket.create_connection((os.environ["PEER_HOST"], int(os.environ["PEER_PORT"])))
        assert read_exactly(self.sock, 5) == b"hello"
        self.ended, self.wait = None, wait
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        try:
            self.ended = self.wait(self.sock)
        except OSError as error:
            self.ended = f"errno {error.errno}"

    def check(self, what):
        if what in ("before", "keep"):
            assert self.ended is None, f"the connection ended: {self.ended}"
            return
        began = time.monotonic()
        while self.ended is None:
            assert time.monotonic() - began < PATIENCE_SECONDS, "the program hangs in its system call"
            time.sleep(0.01)
        assert self.ended.startswith("errno"), f"not an error but {self.ended}"
        closed(self.sock)


def closed(sock):
    """Reading and writing fail at once, and an event loop sees it."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    assert poll.poll(PATIENCE_SECONDS * 1000), "no event"
    for use in (lambda: sock.recv(1), lambda: sock.send(b"x")):
        try:
            done = use()
        except (ConnectionError, OSError) as error:
            assert not isinstance(error, TimeoutError), "it hangs"
        else:
            raise AssertionError(f"the connection lives: {done!r}")


def wait_read(sock):
    return f"data {sock.recv(1)!r}"


def wait_epoll(sock):
    with select.epoll() as epoll:
        epoll.register(sock, select.EPOLLIN)
        events = epoll.poll()
    return f"data {sock.recv(1)!r} after {events}"


class InFlight:
    """A connection that nobody has accepted yet: its other end cannot be frozen."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", next_port()))
        self.sock = socket.create_connection(self.listener.getsockname())

    def check(self, what):
        if what in ("auto", "close"):
            closed(self.sock)
            with socket.create_connection(self.listener.getsockname(), timeout=PATIENCE_SECONDS):
                self.listener.accept()[0].close()


def everything():
    v4, v6 = (lambda: own_address(V4)), (lambda: own_address(V6))
    mapped = lambda: "::ffff:" + own_address(V4)
    lo4, lo6 = (lambda: "127.0.0.1"), (lambda: "::1")
    any4, any6 = (lambda: "0.0.0.0"), (lambda: "::")
    gateway = ("10.88.0.1", 9)
    return {
        "tcp on any address": Listener(V4, "0.0.0.0", any4, [v4, lo4]),
        "tcp on any address of both families": Listener(V6, "::", any6, [v4, v6, lo4, lo6], v6only=0),
        "tcp on IPv6 only": Listener(V6, "::", any6, [v6, lo6], v6only=1),
        "tcp on loopback": Listener(V4, "127.0.0.1", lo4, [lo4]),
        "tcp on the pod's address": Listener(V4, v4(), v4, [v4]),
        "tcp on the pod's IPv6 address": Listener(V6, v6(), v6, [v6]),
        "tcp on the pod's address in IPv6 form": Listener(V6, mapped(), mapped, [v4], v6only=0),
        "tcp on the pod's address, two sockets": Listener(V4, v4(), v4, [v4, v4], reuse=2),
        "udp on any address": Datagram(V4, "0.0.0.0", any4),
        "udp on the pod's address": Datagram(V4, v4(), v4),
        "udp on the pod's IPv6 address": Datagram(V6, v6(), v6),
        "udp connected to the outside": Datagram(V4, "0.0.0.0", v4, gateway),
        "udp on the pod's address, connected": Datagram(V4, v4(), v4, gateway),
        "connection over loopback": Inside(V4, lo4),
        "connection over IPv6 loopback": Inside(V6, lo6),
        "connection over the pod's address": Inside(V4, v4),
        "connection over the pod's IPv6 address": Inside(V6, v6),
        "connection over the pod's address in IPv6 form": Inside(V4, v4, mapped=True),
        "last words of a peer": LastWords(),
        "half-closed connection": HalfClosed(),
        "reading from the outside": Waiting(wait_read),
        "polling the outside": Waiting(wait_epoll),
        "connection that nobody has accepted": InFlight(),
    }


def report(checks, what):
    said = {}
    for name, check in checks.items():
        try:
            check.check(what)
            said[name] = "ok"
        except Exception as error:  # Whatever it is, the report names it.
            said[name] = f"{type(error).__name__}: {error}"
    return json.dumps(said).encode()


def serve():
    checks = everything()
    if os.path.exists(CONTROL):
        os.unlink(CONTROL)
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(CONTROL)
        control.listen()
        print("ready", flush=True)
        while True:
            conn, _ = control.accept()
            with conn:
                conn.sendall(report(checks, conn.recv(100).decode()))


def ask(what):
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(CONTROL)
        control.sendall(what.encode())
        answer = b""
        while chunk := control.recv(65536):
            answer += chunk
        print(answer.decode())


if __name__ == "__main__":
    ask(sys.argv[2]) if sys.argv[1:2] == ["check"] else serve()

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does all that can be done with memory, all the time, in several processes and threads, and compares it: to freeze.

    memory.py             sets everything up and goes on until it is killed
    memory.py check WHAT  run in the same container: prints a JSON object, name of a check -> "ok" or what is wrong.
                          WHAT is not looked at

environment: MB (memory that all processes together hold, 64 if not set)
"""

import hashlib
import json
import mmap
import os
import random
import signal
import socket
import sys
import threading
import time

CONTROL = "/tmp/memory.control.%d"
PROCESSES = 3
MB = int(os.environ.get("MB", "64"))
BLOCK = 256 << 10
PAGE = mmap.PAGESIZE


def digest(data):
    return hashlib.blake2b(data, digest_size=16).digest()


class Block:
    """Memory of its own mapping, of which is known what must be in it."""

    def __init__(self, size=BLOCK):
        self.memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.write()

    def write(self):
        self.memory[:] = os.urandom(len(self.memory))
        self.digest = digest(self.memory)

    def write_one_page(self):
        at = random.randrange(len(self.memory) // PAGE) * PAGE
        self.memory[at : at + PAGE] = os.urandom(PAGE)
        self.digest = digest(self.memory)

    def drop(self):
        self.memory.madvise(mmap.MADV_DONTNEED)
        self.digest = digest(bytes(len(self.memory)))

    def drop_a_part(self):
        first = random.randrange(len(self.memory) // PAGE) * PAGE
        content = bytes(self.memory)
        self.memory.madvise(mmap.MADV_DONTNEED, first, len(self.memory) - first)
        self.digest = digest(content[:first] + bytes(len(content) - first))

    def move(self):
        # Twice as long, it has to go elsewhere; then it is cut to its length.
        size = len(self.memory)
        self.memory.resize(2 * size)
        self.memory.resize(size)

    def is_right(self):
        return digest(self.memory) == self.digest


class Process:
    def __init__(self, number):
        self.number = number
        self.wrong = []
        self.turns = 0
        # Only read, by threads; and changed, by the main thread.
        self.still = [Block() for _ in range(MB * 4 // PROCESSES // 2)]
        self.moving = [Block() for _ in range(MB * 4 // PROCESSES // 2)]
        self.lock = threading.Lock()
        self.children = []

    def complain(self, what):
        self.wrong.append(f"{what} after {self.turns} turns")

    def read_on(self):
        while True:
            if not random.choice(self.still).is_right():
                self.complain("memory that nobody writes is wrong")
            time.sleep(0.005)

    def turn(self):
        self.turns += 1
        block = random.choice(self.moving)
        if not block.is_right():
            self.complain("memory is wrong before a change")
        what = random.choice(["write", "write_one_page", "drop", "drop_a_part", "move", "renew"])
        # Not often: runc cannot freeze a container in which somebody forks all the time.
        if self.turns % 40 == 7:
            what = "fork"
        if what == "renew":
            self.moving.remove(block)
            block.memory.close()
            self.moving.append(Block())
        elif what == "fork":
            self.fork()
        else:
            getattr(block, what)()
        if not block.memory.closed and not block.is_right():
            self.complain(f"memory is wrong after {what}")

    def fork(self):
        """A child compares a sample of all that it has inherited, and writes what it thinks of it."""
        if len(self.children) > 3:
            self.reap()
        ours, theirs = os.pipe()
        if os.fork() == 0:
            sample = random.sample(self.moving, 3) + random.sample(self.still, 3)
            os.write(theirs, b"ok" if all(block.is_right() for block in sample) else b"wrong")
            os._exit(0)
        os.close(theirs)
        self.children.append(ours)

    def reap(self):
        for child in self.children:
            if os.read(child, 10) != b"ok":
                self.complain("a child's memory is wrong")
            os.close(child)
        self.children = []

    def answer(self):
        with self.lock:
            self.reap()
            everything = self.still + self.moving
            bad = sum(not block.is_right() for block in everything)
            turns = "ok" if self.turns > 0 else "nothing was done"
            verdict = "ok" if bad == 0 else f"{bad} of {len(everything)} blocks are wrong"
            seen = "ok" if not self.wrong else "; ".join(self.wrong[:5])
            name = f"process {self.number}"
            return {f"{name}: all memory": verdict, f"{name}: on the way": seen, f"{name}: it lives": turns}

    def live(self):
        for _ in range(3):
            threading.Thread(target=self.read_on, daemon=True).start()
        threading.Thread(target=self.serve, daemon=True).start()
        while True:
            with self.lock:
                self.turn()
            time.sleep(0.003)

    def serve(self):
        path = CONTROL % self.number
        server = socket.socket(socket.AF_UNIX)
        server.bind(path)
        server.listen()
        while True:
            connection, _ = server.accept()
            with connection:
                connection.sendall(json.dumps(self.answer()).encode())


def check():
    answers = {}
    for number in range(PROCESSES):
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(CONTROL % number)
            answers.update(json.loads(b"".join(iter(lambda: control.recv(65536), b""))))
    print(json.dumps(answers))


def main():
    # Children that nobody waits for leave nothing behind.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    number = 0
    for other in range(1, PROCESSES):
        if os.fork() == 0:
            number = other
            break
    process = Process(number)
    if number == 0:
        ready = threading.Thread(target=wait_until_all_serve)
        ready.start()
    process.live()


def wait_until_all_serve():
    while not all(os.path.exists(CONTROL % number) for number in range(PROCESSES)):
        time.sleep(0.05)
    print("ready", flush=True)


if __name__ == "__main__":
    check() if sys.argv[1:2] == ["check"] else main()

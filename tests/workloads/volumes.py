#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds files in /dev/shm and in volumes, and checks them itself when it is asked: a program to freeze.

    volumes.py             sets everything up and waits
    volumes.py check WHAT  run in the same container: prints a JSON object, name of a check -> "ok" or what is wrong

environment: EMPTY_DIRS (paths of emptyDir volumes, separated by colons), SHM (no: leaves /dev/shm alone)
"""

import ctypes
import json
import mmap
import multiprocessing
import multiprocessing.shared_memory
import os
import socket
import sys

CONTROL = "/tmp/volumes.control"
PATIENCE_SECONDS = 20
HOLE_BYTES = 1 << 26


class PosixSemaphore:
    """A named semaphore of the C library, which is a file in /dev/shm."""

    def __init__(self):
        libc = self.libc = ctypes.CDLL(None, use_errno=True)
        libc.sem_open.restype = ctypes.c_void_p
        self.semaphore = libc.sem_open(b"/named", os.O_CREAT | os.O_EXCL, 0o600, 3)
        assert self.semaphore, ctypes.get_errno()

    def check(self):
        again = self.libc.sem_open(b"/named", 0)
        assert again, f"sem_open: errno {ctypes.get_errno()}"
        value = ctypes.c_int()
        for semaphore in (self.semaphore, again):
            self.libc.sem_getvalue(ctypes.c_void_p(semaphore), ctypes.byref(value))
            assert value.value == 3, value.value
        self.libc.sem_post(ctypes.c_void_p(again))
        self.libc.sem_getvalue(ctypes.c_void_p(self.semaphore), ctypes.byref(value))
        assert value.value == 4, "the two names are of different semaphores"
        self.libc.sem_wait(ctypes.c_void_p(self.semaphore))


class SharedMemory:
    """Named memory, which another process finds by its name."""

    def __init__(self):
        self.content = os.urandom(3 << 20)
        self.memory = multiprocessing.shared_memory.SharedMemory("block", create=True, size=len(self.content))
        self.memory.buf[: len(self.content)] = self.content

    def check(self):
        assert bytes(self.memory.buf[: len(self.content)]) == self.content
        again = multiprocessing.shared_memory.SharedMemory("block")
        assert bytes(again.buf[: len(self.content)]) == self.content
        again.buf[0] = self.content[0] ^ 1
        assert self.memory.buf[0] == self.content[0] ^ 1, "the two names are of different memory"
        again.buf[0] = self.content[0]
        again.close()


def child(lock, queue, answers):
    for item in iter(queue.get, None):
        with lock:
            answers.put(item * 2)


class Workers:
    """Processes with locks and queues of Python's multiprocessing: semaphores without a name."""

    def __init__(self):
        context = multiprocessing.get_context("fork")
        self.lock, self.queue, self.answers = context.Lock(), context.Queue(), context.Queue()
        arguments = (self.lock, self.queue, self.answers)
        self.workers = [context.Process(target=child, args=arguments, daemon=True) for _ in range(2)]
        for worker in self.workers:
            worker.start()
        self.check()

    def check(self):
        for item in range(10):
            self.queue.put(item)
        answers = sorted(self.answers.get(timeout=PATIENCE_SECONDS) for _ in range(10))
        assert answers == [2 * item for item in range(10)], answers


class EmptyDir:
    """Files of all kinds in a volume, some of them open and mapped."""

    def __init__(self, top):
        self.top = top
        os.chmod(top, 0o2770)
        os.makedirs(self.at("deep/er"))
        with open(self.at("deep/er/file"), "w") as file:
            file.write("deep")
        os.chown(self.at("deep/er"), 1234, 4321)
        os.chmod(self.at("deep/er/file"), 0o4711)
        os.symlink("deep/er/file", self.at("link"))
        os.link(self.at("deep/er/file"), self.at("hard"))
        os.mkfifo(self.at("fifo"))
        with open(self.at(".wh.deep"), "w") as file:
            file.write("no deletion")
        with open(self.at("sparse"), "wb") as file:
            file.truncate(HOLE_BYTES)
            file.seek(HOLE_BYTES // 2)
            file.write(b"in the middle")
        try:
            os.setxattr(self.at("deep"), "user.note", b"attribute")
            self.attribute = True
        except OSError:
            self.attribute = False
        self.open = open(self.at("open"), "w+")
        self.open.write("0123456789")
        self.open.flush()
        self.open.seek(4)
        fd = os.open(self.at("mapped"), os.O_RDWR | os.O_CREAT)
        os.ftruncate(fd, mmap.PAGESIZE)
        self.map = mmap.mmap(fd, mmap.PAGESIZE)
        self.map[:5] = b"first"

    def at(self, path):
        return os.path.join(self.top, path)

    def check(self):
        stat = lambda path: os.stat(self.at(path))
        assert stat("").st_mode & 0o7777 == 0o2770, oct(stat("").st_mode)
        assert (stat("deep/er").st_uid, stat("deep/er").st_gid) == (1234, 4321), stat("deep/er")
        assert stat("deep/er/file").st_mode & 0o7777 == 0o4711, oct(stat("deep/er/file").st_mode)
        assert stat("hard").st_ino == stat("deep/er/file").st_ino
        assert open(self.at("link")).read() == "deep"
        assert open(self.at(".wh.deep")).read() == "no deletion"
        assert stat("fifo").st_mode & 0o170000 == 0o010000
        assert stat("sparse").st_size == HOLE_BYTES
        assert stat("sparse").st_blocks * 512 < HOLE_BYTES // 10, stat("sparse").st_blocks
        with open(self.at("sparse"), "rb") as file:
            file.seek(HOLE_BYTES // 2)
            assert file.read(13) == b"in the middle"
        if self.attribute:
            assert os.getxattr(self.at("deep"), "user.note") == b"attribute"
        assert self.open.tell() == 4
        assert self.open.read() == "456789"
        self.open.seek(4)
        assert open(self.at("open")).read() == "0123456789"
        self.map[5:9] = b"more"
        self.map.flush()
        assert open(self.at("mapped"), "rb").read(9) == b"firstmore", "the mapping is of another file"
        self.map[5:9] = bytes(4)


def everything():
    checks = {}
    if os.environ.get("SHM") != "no":
        checks = {"posix semaphore": PosixSemaphore(), "shared memory": SharedMemory(), "workers": Workers()}
    for top in filter(None, os.environ.get("EMPTY_DIRS", "").split(":")):
        checks[f"emptyDir at {top}"] = EmptyDir(top)
    return checks


def report(checks):
    said = {}
    for name, check in checks.items():
        try:
            check.check()
            said[name] = "ok"
        except Exception as error:  # Whatever it is, the report names it.
            said[name] = f"{type(error).__name__}: {error}"
    return json.dumps(said).encode()


def serve():
    checks = everything()
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(CONTROL)
        control.listen()
        print("ready", flush=True)
        while True:
            conn, _ = control.accept()
            with conn:
                conn.recv(100)
                conn.sendall(report(checks))


def ask():
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(CONTROL)
        control.sendall(b"check")
        answer = b""
        while chunk := control.recv(65536):
            answer += chunk
        print(answer.decode())


if __name__ == "__main__":
    ask() if sys.argv[1:2] == ["check"] else serve()

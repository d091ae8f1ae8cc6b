#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Keeps files open that are another pod's after a restore, and shows what it finds there: a program to freeze.

    identity.py             opens everything and waits
    identity.py check WHAT  run in the same container: prints a JSON object: what each open file has now, and what the
                            program sees of the pod that it is in

environment: FILES (paths, separated by colons), LOG (a file that it writes at its end)
"""

import json
import os
import socket
import sys

CONTROL = "/tmp/identity.control"


def read_from_start(fd):
    return os.pread(fd, 1 << 16, 0).decode()


def see(files, log):
    seen = {path: read_from_start(fd) for path, fd in files.items()}
    seen["hostname"] = socket.gethostname()
    for path in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf"):
        seen["by name " + path] = open(path).read()
    if log:
        log.write("more\n")
        log.flush()
    os.write(files["/dev/termination-log"], b"x") if "/dev/termination-log" in files else None
    return seen


def serve():
    paths = [path for path in os.environ.get("FILES", "").split(":") if path]
    writable = ("/dev/termination-log",)
    files = {path: os.open(path, os.O_RDWR if path in writable else os.O_RDONLY) for path in paths}
    log = open(os.environ["LOG"], "a+") if os.environ.get("LOG") else None
    if log:
        log.write("first\n")
        log.flush()
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(CONTROL)
        control.listen()
        print("ready", flush=True)
        while True:
            conn, _ = control.accept()
            with conn:
                conn.recv(100)
                conn.sendall(json.dumps(see(files, log)).encode())


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

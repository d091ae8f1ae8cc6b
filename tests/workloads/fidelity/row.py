# SPDX-License-Identifier: Apache-2.0
"""What rows are written with."""

import ctypes
import os
import time

libc = ctypes.CDLL(None, use_errno=True)


def rows():
    """A registry, and the decorator that adds a generator function to it under its own name."""
    registry = {}

    def row(function):
        registry[function.__name__] = function
        return function

    return registry, row


def same(before, after):
    assert before == after, f"was {before!r} and is {after!r}"


def call(name, *arguments):
    """A function of the C library that returns -1 and sets errno on failure."""
    result = getattr(libc, name)(*arguments)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def prctl(option, *arguments):
    """prctl(2) with every argument as wide as the kernel reads it."""
    padded = [*arguments, 0, 0, 0, 0][:4]
    return call("prctl", option, *[ctypes.c_ulong(value) if isinstance(value, int) else value for value in padded])


def status(pid="self", *fields):
    """Fields of /proc/PID/status, as a dictionary."""
    with open(f"/proc/{pid}/status") as file:
        pairs = (line.rstrip("\n").split(":", 1) for line in file)
        return {key: value.strip() for key, value in pairs if not fields or key in fields}


def eventually(condition, seconds=10):
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)


def child(function):
    """Forks a process that runs a function and then waits for ever; returns its pid once the function is done."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        function()
        os.write(write, b".")
        os.close(write)
        while True:
            time.sleep(3600)
    os.close(write)
    assert os.read(read, 1) == b".", "the child ended"
    os.close(read)
    return pid


class Asked:
    """A process that runs a function whenever it is asked, and sends back what it returns as text."""

    def __init__(self, function):
        ask_read, self.ask = os.pipe()
        self.answer, answer_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.ask)
            os.close(self.answer)
            while os.read(ask_read, 1):
                try:
                    said = repr(function())
                except OSError as error:
                    said = repr(error)
                os.write(answer_write, said.encode())
            os._exit(0)
        os.close(ask_read)
        os.close(answer_write)

    def __call__(self):
        os.write(self.ask, b"?")
        return os.read(self.answer, 4096).decode()

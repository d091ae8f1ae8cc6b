# SPDX-License-Identifier: Apache-2.0
"""Programs of Debian that serve nobody: each is used as people use it, through pipes, a terminal or a window.

The rows' `yield`s mean what they mean for servers: a first answer, then state, then what became of it.
"""

import concurrent.futures
import multiprocessing
import multiprocessing.shared_memory
import os
import pty
import select
import subprocess
import sys
import time

from row import eventually, rows, same
from servers import home, start

ROWS, row = rows()


class Prompt:
    """A program that reads commands; an answer ends with a line that it was asked to print."""

    END = "--end--"

    def __init__(self, write, read, end_command):
        self.write, self.read, self.end_command = write, read, end_command

    def ask(self, command, seconds=50):
        """The lines that a command prints."""
        os.write(self.write, f"{command}\n{self.end_command}\n".encode())
        said, deadline = "", time.monotonic() + seconds
        while self.END not in said.replace("\r", "").split("\n"):
            assert select.select([self.read], [], [], max(0, deadline - time.monotonic()))[0], f"no answer: {said!r}"
            more = os.read(self.read, 1 << 16)
            assert more, f"ended: {said!r}"
            said += more.decode()
        return said.replace("\r", "").split(f"{self.END}\n")[0].split("\n")[:-1]


@row
def r():
    """An R session: variables, a model that was fitted, the state of the random numbers."""
    process = subprocess.Popen(["R", "--no-save", "--no-echo"], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0)
    session = Prompt(process.stdin.fileno(), process.stdout.fileno(), f"cat('{Prompt.END}\\n')")
    same(["42"], session.ask("cat(6 * 7, '\\n', sep='')"))
    yield
    session.ask("set.seed(1); x <- 1:100; y <- 3 * x + rnorm(100); model <- lm(y ~ x); life <- 0")
    coefficient = session.ask("cat(format(coef(model)[2], digits=15), '\\n')")
    # What another R draws that begins with the same seed and is never frozen.
    script = "set.seed(1); x <- rnorm(100); for (i in 1:9) cat(format(runif(1), digits=15), '\\n')"
    drawn = subprocess.check_output(["Rscript", "-e", script], text=True).splitlines()
    life = 0
    while True:
        yield
        same([f"{life + 1}"], session.ask("life <- life + 1; cat(life, '\\n', sep='')"))
        same(coefficient, session.ask("cat(format(coef(model)[2], digits=15), '\\n')"))
        same([drawn[life]], session.ask("cat(format(runif(1), digits=15), '\\n')"))
        life += 1


# A network with one hidden layer that learns a curve by descent with momentum; prints each loss as it is in memory.
TRAINING = """
import sys, numpy
numbers = numpy.random.default_rng(7)
x = numbers.normal(size=(256, 8)); y = numpy.sin(x.sum(axis=1, keepdims=True))
a, b = numbers.normal(size=(8, 64)) / 3, numbers.normal(size=(64, 1)) / 8
va, vb = numpy.zeros_like(a), numpy.zeros_like(b)
for step in sys.stdin:
    batch = numbers.integers(0, 256, size=64)
    h = numpy.tanh(x[batch] @ a)
    error = h @ b - y[batch]
    gb = h.T @ error / 64
    ga = x[batch].T @ ((error @ b.T) * (1 - h * h)) / 64
    va, vb = 0.9 * va - 0.05 * ga, 0.9 * vb - 0.05 * gb
    a, b = a + va, b + vb
    print(float((error * error).mean()).hex(), flush=True)
"""


@row
def training():
    """A training loop in NumPy: its loss goes on bit for bit as that of one which was never frozen."""
    lives, steps = 3, 200
    whole = subprocess.run([sys.executable, "-c", TRAINING], input="\n" * lives * steps, stdout=subprocess.PIPE,
                           text=True, check=True).stdout.splitlines()
    same(lives * steps, len(set(whole)))
    process = subprocess.Popen([sys.executable, "-c", TRAINING], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               text=True, bufsize=1)
    curve = []

    def train():
        process.stdin.write("\n" * steps)
        process.stdin.flush()
        curve.extend(process.stdout.readline().rstrip("\n") for _ in range(steps))

    train()
    yield
    while True:
        yield
        same(whole[:len(curve)], curve)
        if len(curve) < len(whole):
            train()
            same(whole[:len(curve)], curve)


def work(number):
    time.sleep(0.002)
    return os.getpid(), number * number


def add(name, lock):
    memory = multiprocessing.shared_memory.SharedMemory(name)
    with lock:
        memory.buf[0] += 1
    memory.close()


@row
def pool():
    """Pools of processes with their queues, locks and shared memory, and work that is under way when they freeze."""
    context = multiprocessing.get_context("fork")
    lock, queue = context.Lock(), context.Queue()
    processes = context.Pool(4)
    executor = concurrent.futures.ProcessPoolExecutor(3, mp_context=context)
    same(1764, executor.submit(work, 42).result(timeout=50)[1])
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=4096)
    yield
    known = {pid for pid, _ in processes.map(work, range(200), chunksize=1)}
    queue.put("kept")
    life = 0
    while True:
        under_way = processes.map_async(work, range(500), chunksize=1)
        yield
        life += 1
        same([number * number for number in range(500)], [square for _, square in under_way.get(timeout=50)])
        seen = {pid for pid, _ in processes.map(work, range(200), chunksize=1)}
        assert seen <= known | {each.pid for each in processes._pool}, "other processes than before"
        same("kept", queue.get(timeout=50))
        queue.put("kept")
        adders = [context.Process(target=add, args=(memory.name, lock)) for _ in range(3)]
        for each in adders:
            each.start()
        for each in adders:
            each.join(50)
        same(3 * life, memory.buf[0])
        same(1764, executor.submit(work, 42).result(timeout=50)[1])


def name_of(pid):
    with open(f"/proc/{pid}/comm") as comm:
        return comm.read().strip()


@row
def bash():
    """A shell on a terminal: a job in the background, one that was stopped, variables, and the keys that stop."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "--noediting"], os.environ | {"PS1": "", "PS2": ""})
    # What is typed comes back as it is echoed, so the line that ends an answer is not typed as it is printed.
    shell = Prompt(terminal, terminal, f"printf '%s-end--\\n' -")
    shell.ask("stty -echo")
    same(["42"], shell.ask("echo $((6 * 7))")[-1:])
    yield
    shell.ask("life=0; word='a word'; (while :; do sleep 0.05; done) & job=$!")
    shell.ask("sleep 100000 & kill -STOP $!; while ! grep -q 'State:.T' /proc/$!/status; do sleep 0.05; done")
    shell.ask("jobs")
    life = 0
    while True:
        yield
        life += 1
        same([f"{life} a word"], shell.ask("life=$((life + 1)); echo $life $word")[-1:])
        listed = shell.ask("jobs")
        assert any("Running" in line and "while" in line for line in listed), listed
        assert any("Stopped" in line and "100000" in line for line in listed), listed
        # A job in the foreground that a key ends.
        os.write(terminal, b"sleep 99999; echo 'after the key'\n")
        # Before that the new process may still be the shell, which takes note of the key and goes on.
        eventually(lambda: name_of(os.tcgetpgrp(terminal)) == "sleep")
        os.write(terminal, b"\x03")
        eventually(lambda: os.tcgetpgrp(terminal) == pid)
        same(["130"], shell.ask("echo $?")[-1:])


@row
def xserver():
    """A virtual desktop: the picture is the same, and a window draws itself anew when another one has covered it."""
    environment = os.environ | {"DISPLAY": ":7"}
    start("xserver", "Xvfb", ":7", "-screen", "0", "320x240x24", "-nolisten", "tcp", "-noreset")
    eventually(lambda: os.path.exists("/tmp/.X11-unix/X7"), 50)

    def screenshot():
        return subprocess.run(["xwd", "-root", "-silent"], env=environment, stdout=subprocess.PIPE, check=True).stdout

    empty = screenshot()
    yield
    start("xserver", "xlogo", "-geometry", "200x200+20+20", env=environment)
    eventually(lambda: screenshot() != empty, 50)
    settled = []

    def is_settled():
        settled.append(screenshot())
        time.sleep(0.2)
        return len(settled) > 2 and settled[-1] == settled[-3] != empty

    eventually(is_settled, 50)
    picture = settled[-1]
    while True:
        yield
        same(len(picture), len(screenshot()))
        assert screenshot() == picture, "the picture has changed"
        other = start("xserver", "xlogo", "-bg", "black", "-geometry", "320x240+0+0", env=environment)
        eventually(lambda: screenshot() != picture, 50)
        other.kill()
        other.wait()
        eventually(lambda: screenshot() == picture, 50)

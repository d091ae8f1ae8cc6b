# SPDX-License-Identifier: Apache-2.0
"""Rows about processes: who they are, what they wait for, what they have in memory."""

import ctypes
import fcntl
import hashlib
import mmap
import os
import resource
import select
import signal
import struct
import threading
import time

from row import Asked, call, child, eventually, libc, prctl, rows, same, status

ROWS, row = rows()


def stat(pid):
    """State, parent, process group and session of a process."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return fields[0], *map(int, fields[1:4])


@row
def process_tree():
    """4 children with 3 children each."""
    pids = []

    def with_children():
        for _ in range(3):
            child(lambda: None)

    for _ in range(4):
        pids.append(child(with_children))
    children = lambda pid: sorted(open(f"/proc/{pid}/task/{pid}/children").read().split())
    all_children = lambda: {pid: children(pid) for pid in [os.getpid(), *pids]}
    before = all_children()
    same(16, sum(map(len, before.values())))
    while True:
        yield
        same(before, all_children())


@row
def threads():
    """100 threads, each with a name, memory of its own, and a lock that it waits for."""
    local, answers, turn = threading.local(), {}, threading.Condition()
    asked = [0]

    def thread(number):
        local.value, heard = number * number, 0
        prctl(15, f"row-{number}".encode())  # PR_SET_NAME
        while True:
            with turn:
                turn.wait_for(lambda: asked[0] > heard)
                heard = asked[0]
                answers[number] = (local.value, threading.get_native_id())

    def ask():
        answers.clear()
        with turn:
            asked[0] += 1
            turn.notify_all()
        eventually(lambda: len(answers) == 100)
        names = {open(f"/proc/self/task/{tid}/comm").read() for tid in os.listdir("/proc/self/task")}
        return dict(answers), names

    for number in range(100):
        threading.Thread(target=thread, args=(number,), daemon=True).start()
    before = ask()
    assert "row-99\n" in before[1], before
    while True:
        yield
        same(before, ask())


@row
def zombie():
    """A child that ended with status 7, and one that was killed, and nobody has asked yet."""
    ended = os.fork()
    if ended == 0:
        os._exit(7)
    killed = child(lambda: None)
    os.kill(killed, signal.SIGKILL)
    look = lambda pid: os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    fields = lambda pid: (look(pid).si_code, look(pid).si_status, stat(pid))
    before = fields(ended), fields(killed)
    assert before[0][1] == 7 and before[1][1] == signal.SIGKILL, before
    while True:
        yield
        same(before, (fields(ended), fields(killed)))


@row
def stopped():
    """A child that was stopped stays so until it is continued."""
    pid = child(lambda: None)
    os.kill(pid, signal.SIGSTOP)
    eventually(lambda: stat(pid)[0] == "T")
    while True:
        yield
        eventually(lambda: stat(pid)[0] == "T", 2)
        os.kill(pid, signal.SIGCONT)
        eventually(lambda: stat(pid)[0] == "S")
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: stat(pid)[0] == "T")


@row
def sessions_and_groups():
    """A session, and in it a process group without its leader."""
    def in_session():
        os.setsid()
        leader = child(os.setpgrp)
        child(lambda: os.setpgid(0, leader))
        os.kill(leader, signal.SIGKILL)
        os.waitpid(leader, 0)

    pid = child(in_session)
    members = lambda: [stat(each)[1:] for each in [pid, *open(f"/proc/{pid}/task/{pid}/children").read().split()]]
    before = members()
    assert before[0][2] == pid and before[1][1] != pid, before
    while True:
        yield
        same(before, members())


@row
def parent_ended():
    """A process whose parent has ended belongs to the container's first one."""
    read, write = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.write(write, struct.pack("i", child(os.setsid)))
        os._exit(0)
    os.waitpid(middle, 0)
    orphan = struct.unpack("i", os.read(read, 4))[0]
    before = stat(orphan)[1:]
    same(1, before[0])
    while True:
        yield
        same(before, stat(orphan)[1:])


class Siginfo(ctypes.Structure):
    """Source: linux/siginfo.h, the part that rt_sigqueueinfo(2) sets."""

    _fields_ = [("signo", ctypes.c_int), ("errno", ctypes.c_int), ("code", ctypes.c_int), ("pad", ctypes.c_int),
                ("pid", ctypes.c_int), ("uid", ctypes.c_uint), ("value", ctypes.c_long), ("rest", ctypes.c_char * 96)]


@row
def signals_pending():
    """A blocked signal that came, and queued real-time ones with their values."""
    realtime = signal.SIGRTMIN + 3
    blocked = {signal.SIGUSR1, realtime}
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)

    def send():
        os.kill(os.getpid(), signal.SIGUSR1)
        for value in (11, 22):
            call("sigqueue", os.getpid(), realtime, ctypes.c_void_p(value))

    def take():
        info = Siginfo()
        mask = (ctypes.c_ulong * 16)(sum(1 << (number - 1) for number in blocked))
        zero = (ctypes.c_long * 2)(0, 0)
        taken = []
        while libc.sigtimedwait(ctypes.byref(mask), ctypes.byref(info), ctypes.byref(zero)) > 0:
            taken.append((info.signo, info.code, info.pid, info.value if info.signo == realtime else 0))
        return taken

    send()
    before = take()
    same([signal.SIGUSR1, realtime, realtime], [each[0] for each in before])
    while True:
        send()
        yield
        same(blocked, signal.sigpending())
        same(before, take())


@row
def signals_handled():
    """Blocked, ignored and handled signals, and a stack of its own for handlers."""
    came = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, lambda *_: came.append(1))
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGRTMAX})
    stack = ctypes.create_string_buffer(1 << 16)

    class Stack(ctypes.Structure):
        _fields_ = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

    call("sigaltstack", ctypes.byref(Stack(ctypes.addressof(stack), 0, len(stack))), None)

    def alternate():
        now = Stack()
        call("sigaltstack", None, ctypes.byref(now))
        return now.pointer, now.flags, now.size

    fields = lambda: (status("self", "SigBlk", "SigIgn", "SigCgt"), alternate())
    before = fields()
    while True:
        yield
        same(before, fields())
        came.clear()
        os.kill(os.getpid(), signal.SIGUSR2)
        eventually(lambda: came)


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class Itimerspec(ctypes.Structure):
    _fields_ = [("interval", Timespec), ("value", Timespec)]


@row
def posix_timers():
    """A timer that ticks by a signal, and one that is an hour away."""
    ticks = []
    signal.signal(signal.SIGUSR1, lambda *_: ticks.append(1))

    def timer(clock, first, interval, number):
        # struct sigevent: value, signal, SIGEV_SIGNAL.
        event = ctypes.create_string_buffer(struct.pack("qii", 5, number, 0), 64)
        timer_id = ctypes.c_void_p()
        call("timer_create", clock, event, ctypes.byref(timer_id))
        spec = Itimerspec(Timespec(0, interval), Timespec(*divmod(first, 10**9)))
        call("timer_settime", timer_id, 0, ctypes.byref(spec), None)
        return timer_id

    def left(timer_id):
        spec = Itimerspec()
        call("timer_gettime", timer_id, ctypes.byref(spec))
        return spec.value.seconds, spec.interval.nanoseconds

    ticking = timer(1, 10**8, 10**8, signal.SIGUSR1)
    away = timer(0, 3600 * 10**9, 0, signal.SIGUSR2)
    while True:
        yield
        ticks.clear()
        eventually(lambda: len(ticks) >= 3)
        same(10**8, left(ticking)[1])
        assert 3000 < left(away)[0] <= 3600, left(away)


@row
def timerfd():
    """One that ticks, and one that is an hour away."""
    ticking, away = os.timerfd_create(time.CLOCK_MONOTONIC), os.timerfd_create(time.CLOCK_BOOTTIME)
    os.timerfd_settime(ticking, initial=0.1, interval=0.1)
    os.timerfd_settime(away, initial=3600)
    while True:
        yield
        os.read(ticking, 8)
        os.read(ticking, 8)
        assert abs(os.timerfd_gettime(ticking)[1] - 0.1) < 1e-6, os.timerfd_gettime(ticking)
        assert 3000 < os.timerfd_gettime(away)[0] <= 3600, os.timerfd_gettime(away)


@row
def interval_timers():
    """alarm(2), and the timers that count the time that the process has used."""
    signal.signal(signal.SIGVTALRM, lambda *_: None)
    signal.alarm(3600)
    signal.setitimer(signal.ITIMER_VIRTUAL, 1000, 500)
    signal.setitimer(signal.ITIMER_PROF, 2000)
    while True:
        yield
        left = [signal.getitimer(which) for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)]
        # The kernel adds a tick to those that count used time.
        assert 3000 < left[0][0] <= 3600 and 900 < left[1][0] < 1001 and left[1][1] == 500, left
        assert 1900 < left[2][0] < 2001, left


@row
def clocks():
    """Monotonic and boot clocks go on, without a step back, and without the time that it was frozen."""
    kinds = time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, time.CLOCK_MONOTONIC_RAW
    read = lambda: [time.clock_gettime(kind) for kind in kinds]
    while True:
        before, wall = read(), time.time()
        yield
        after, passed = read(), time.time() - wall
        for old, new in zip(before, after):
            assert 0 <= new - old <= passed + 1, (before, after, passed)


@row
def a_sleep():
    """A sleep is as long as it was meant to be, in a program that goes on with it when it is interrupted."""
    asked = Asked(lambda: (began := time.monotonic(), time.sleep(30), 29 < time.monotonic() - began < 90)[-1])
    os.write(asked.ask, b"?")
    yield
    same("True", os.read(asked.answer, 100).decode())
    while True:
        yield


@row
def nice_and_scheduling():
    """Nice value and scheduling policy."""
    os.nice(7)
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    look = lambda: (os.nice(0), os.sched_getscheduler(0))
    before = look()
    while True:
        yield
        same(before, look())


@row
def affinity():
    """A process that keeps to one processor, and a thread of it that keeps to another one if there is one."""
    mine, other = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
    numbers = []

    def thread():
        os.sched_setaffinity(0, {other})
        numbers.append(threading.get_native_id())
        threading.Event().wait()

    threading.Thread(target=thread, daemon=True).start()
    eventually(lambda: numbers)
    free = child(lambda: None)
    everything = os.sched_getaffinity(free)
    os.sched_setaffinity(0, {mine})
    look = lambda: (os.sched_getaffinity(0), os.sched_getaffinity(numbers[0]), os.sched_getaffinity(free))
    same(({mine}, {other}, everything), look())
    while True:
        yield
        same(({mine}, {other}, everything), look())


@row
def timer_slack():
    """PR_SET_TIMERSLACK."""
    prctl(29, 123456)
    look = lambda: libc.prctl(30, *[ctypes.c_ulong(0)] * 4)
    while True:
        yield
        same(123456, look())


@row
def resource_limits():
    """Soft and hard limits that the program has lowered."""
    for kind, soft, hard in [(resource.RLIMIT_NOFILE, 300, 400), (resource.RLIMIT_CORE, 0, 0),
                             (resource.RLIMIT_STACK, 1 << 22, 1 << 23), (resource.RLIMIT_CPU, 3000, 4000)]:
        resource.setrlimit(kind, (soft, hard))
    look = lambda: open("/proc/self/limits").read()
    before = look()
    while True:
        yield
        same(before, look())


@row
def system_v_ipc():
    """A segment that two processes have attached, a set of semaphores, a queue with messages in it."""
    ipc_creat, ipc_nowait, getval, setval = 0o1000, 0o4000, 12, 16
    libc.shmat.restype = ctypes.c_void_p
    segment = call("shmget", 0x7A01, 8192, ipc_creat | 0o600)
    attached = lambda: (ctypes.c_char * 8192).from_address(libc.shmat(segment, None, 0))
    memory = attached()
    other = Asked(lambda own=attached(): own.value)
    semaphores = call("semget", 0x7A02, 3, ipc_creat | 0o600)
    for number in range(3):
        call("semctl", semaphores, number, setval, 5 + number)
    queue = call("msgget", 0x7A03, ipc_creat | 0o600)
    send = lambda kind, text: call("msgsnd", queue, struct.pack("l16s", kind, text), 16, ipc_nowait)

    def receive(kind):
        message = ctypes.create_string_buffer(24)
        call("msgrcv", queue, message, 16, ctypes.c_long(kind), ipc_nowait)
        return message.raw[8:].rstrip(b"\0")

    life = 0
    while True:
        memory.value = b"life %d" % life
        send(3, b"third")
        send(1, b"first")
        yield
        same(b"life %d" % life, memory.value)
        same(repr(memory.value), other())
        same(segment, call("shmget", 0x7A01, 8192, 0))
        same([5, 6, 7], [call("semctl", semaphores, number, getval) for number in range(3)])
        same([b"first", b"third"], [receive(1), receive(0)])
        life += 1


@row
def umask_directory_and_root():
    """umask, working directory, and a root directory of its own."""
    os.makedirs("/var/tmp/cell/inner", exist_ok=True)
    os.umask(0o027)
    os.chdir("/var/tmp/cell/inner")

    def confined():
        os.chroot("/var/tmp/cell")
        os.chdir("/inner")

    pid = child(confined)
    look = lambda: (status("self", "Umask"), os.getcwd(), os.readlink(f"/proc/{pid}/root"), os.readlink(f"/proc/{pid}/cwd"))
    before = look()
    same("/var/tmp/cell", before[2])
    while True:
        yield
        same(before, look())


CREDENTIALS = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp",
               "Seccomp_filters"]


@row
def groups():
    """Supplementary groups."""
    os.setgroups([3, 1002, 70000])
    while True:
        yield
        same([3, 1002, 70000], os.getgroups())


@row
def capabilities():
    """Less in the bounding, effective and permitted sets; more in the inheritable and ambient ones."""
    prctl(24, 13)  # PR_CAPBSET_DROP, CAP_NET_RAW
    header = (ctypes.c_uint * 2)(0x20080522, 0)
    sets = (ctypes.c_uint * 6)()
    call("capget", header, sets)
    sets[0] &= ~(1 << 27)  # effective without CAP_MKNOD
    sets[2] |= 1 << 10  # inheritable with CAP_NET_BIND_SERVICE
    call("capset", header, sets)
    prctl(47, 2, 10)  # PR_CAP_AMBIENT_RAISE
    look = lambda: status("self", *CREDENTIALS)
    before = look()
    assert before["CapAmb"] == "0000000000000400", before
    while True:
        yield
        same(before, look())


@row
def secure_bits():
    """SECBIT_NOROOT, and the lock on it."""
    prctl(28, 3)
    while True:
        yield
        same(3, prctl(27))


@row
def no_new_privileges():
    """Of one thread and of its children."""
    prctl(38, 1)
    pid = child(lambda: None)
    while True:
        yield
        same(("1", "1"), (status("self")["NoNewPrivs"], status(pid)["NoNewPrivs"]))


@row
def seccomp_filter():
    """A filter that the program has set itself: sethostname(2) answers with error 77."""
    load, jump, give = 0x20, 0x15, 0x06
    filters = [(load, 0, 0, 0), (jump, 0, 1, 170), (give, 0, 0, 0x00050000 | 77), (give, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in filters))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(filters), ctypes.addressof(code)))
    prctl(38, 1)
    prctl(22, 2, ctypes.byref(program))
    look = lambda: status("self", "Seccomp", "Seccomp_filters")
    before = look()
    while True:
        yield
        same(before, look())
        try:
            call("sethostname", b"x", 1)
            raise AssertionError("the filter is gone")
        except OSError as error:
            same(77, error.errno)


def of_prctl(get, put, value, by_pointer=False):
    """Sets something by prctl(2) and looks at it."""
    def look():
        if not by_pointer:
            return prctl(get)
        place = ctypes.c_int()
        prctl(get, ctypes.byref(place))
        return place.value

    prctl(put, value)
    same(value, look())
    while True:
        yield
        same(value, look())


@row
def parent_death_signal():
    """PR_SET_PDEATHSIG."""
    return of_prctl(2, 1, 12, by_pointer=True)


@row
def child_subreaper():
    """PR_SET_CHILD_SUBREAPER."""
    return of_prctl(37, 36, 1, by_pointer=True)


@row
def not_dumpable():
    """PR_SET_DUMPABLE."""
    return of_prctl(3, 4, 0)


@row
def no_huge_pages():
    """PR_SET_THP_DISABLE."""
    return of_prctl(42, 41, 1)


@row
def process_name():
    """The name that a process gives itself."""
    prctl(15, b"a-row-of-it")
    while True:
        yield
        same("a-row-of-it\n", open("/proc/self/comm").read())


@row
def private_memory():
    """32 MB that cannot be compressed, a hole that cannot be read, a page that cannot be written."""
    memory = mmap.mmap(-1, 32 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(os.urandom(32 << 20))
    other = mmap.mmap(-1, 3 << 12, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(other))
    call("mprotect", ctypes.c_void_p(address), 1 << 12, 0)
    call("mprotect", ctypes.c_void_p(address + (1 << 12)), 1 << 12, 1)
    memory.madvise(mmap.MADV_DONTFORK)
    memory.madvise(mmap.MADV_DONTDUMP)
    digest = lambda: hashlib.sha256(memory).hexdigest()
    before = digest()
    kept = "dc" in flags_of(memory), "dd" in flags_of(memory)
    same((True, True), kept)
    rights = lambda: [line.split()[1] for line in open("/proc/self/maps") if int(line.split("-")[0], 16) in (address, address + 4096)]
    same(["---p", "r--p"], rights())
    while True:
        yield
        same(before, digest())
        same(["---p", "r--p"], rights())
        same(kept, ("dc" in flags_of(memory), "dd" in flags_of(memory)))


def flags_of(memory):
    """VmFlags of a mapping. Source: proc_pid_smaps(5)."""
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    found = False
    for line in open("/proc/self/smaps"):
        first = line.split()[0]
        if "-" in first:
            begin, end = (int(part, 16) for part in first.split("-"))
            found = begin <= address < end
        elif found and first == "VmFlags:":
            return line.split()[1:]
    raise AssertionError("no such mapping")


@row
def private_file_mapping():
    """A file mapped privately, of which one page was changed in memory alone."""
    path = "/var/tmp/private-mapping"
    with open(path, "wb") as file:
        file.write(b"f" * (4 << 12))
    with open(path, "rb") as file:
        memory = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    memory[4096:4106] = b"in memory!"
    while True:
        yield
        same((b"f", b"in memory!", b"ffff"), (memory[0:1], memory[4096:4106], open(path, "rb").read()[4096:4100]))


@row
def shared_memory():
    """Anonymous memory shared with another process: each sees what the other writes."""
    memory = mmap.mmap(-1, 8 << 20)
    memory.write(os.urandom(8 << 20))

    def raise_first():
        memory[0] = (memory[0] + 1) % 256
        return memory[0]

    other = Asked(raise_first)
    digest = lambda: hashlib.sha256(memory[1:]).hexdigest()
    before = digest()
    while True:
        yield
        same(before, digest())
        first = memory[0]
        same(str((first + 1) % 256), other())
        same((first + 1) % 256, memory[0])


@row
def memfd():
    """Content, name, seals, position, and a mapping of it that another process shares."""
    descriptor = os.memfd_create("a row", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    os.write(descriptor, b"m" * (1 << 20))
    os.lseek(descriptor, 17, os.SEEK_SET)
    memory = mmap.mmap(descriptor, 1 << 20)
    other = Asked(lambda: memory[5])
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    look = lambda: (os.readlink(f"/proc/self/fd/{descriptor}"), fcntl.fcntl(descriptor, fcntl.F_GET_SEALS),
                    os.lseek(descriptor, 0, os.SEEK_CUR), os.fstat(descriptor).st_size, os.pread(descriptor, 3, 100))
    before = look()
    while True:
        yield
        same(before, look())
        memory[5] = (memory[5] + 1) % 256
        same(str(memory[5]), other())
        same(memory[5], os.pread(descriptor, 1, 5)[0])


@row
def pidfd():
    """A descriptor of another process, which signals it and sees it end."""
    pids = [child(lambda: None) for _ in range(3)]
    descriptors = [os.pidfd_open(pid) for pid in pids]
    while True:
        yield
        same([], select.select(descriptors, [], [], 0)[0])
        signal.pidfd_send_signal(descriptors[0], signal.SIGKILL)
        same([descriptors[0]], select.select(descriptors, [], [], 10)[0])
        os.waitpid(pids.pop(0), 0)
        os.close(descriptors.pop(0))

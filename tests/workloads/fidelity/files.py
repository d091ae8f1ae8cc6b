# SPDX-License-Identifier: Apache-2.0
"""Rows about open files of every kind."""

import array
import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import select
import signal
import socket
import struct
import termios
import tty

from row import Asked, call, child, eventually, libc, rows, same

ROWS, row = rows()

# On the container's writable layer; on a volume; in memory that is the container's own.
LAYER, VOLUME, TMPFS = "/var/tmp/files", "/volume", "/dev"


def place(name, content=b"", where=LAYER):
    os.makedirs(where, exist_ok=True)
    path = f"{where}/{name}"
    with open(path, "wb") as file:
        file.write(content)
    return path


def reads_on(where):
    """A file that was read up to its middle, and another one through a second descriptor with the same position."""
    path = place("read", bytes(range(200)), where)
    descriptor = os.open(path, os.O_RDWR)
    os.read(descriptor, 50)
    twin = os.dup(descriptor)
    other = Asked(lambda: os.read(twin, 1))
    expected = 50
    while True:
        yield
        for read in (lambda: os.read(descriptor, 1), lambda: os.read(twin, 1)):
            same(bytes([expected]), read())
            expected += 1
        same(repr(bytes([expected])), other())
        expected += 1


@row
def read_on_the_writable_layer():
    return reads_on(LAYER)


@row
def read_on_a_volume():
    return reads_on(VOLUME)


@row
def read_on_the_containers_tmpfs():
    return reads_on(TMPFS)


def appends(where):
    path = place("log", b"begin\n", where)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
    text = b"begin\n"
    while True:
        for _ in range(3):
            os.write(descriptor, b"a line\n")
            text += b"a line\n"
        yield
        same(text, open(path, "rb").read())
        same(os.O_APPEND | os.O_WRONLY, fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_APPEND | os.O_ACCMODE))


@row
def append_on_the_writable_layer():
    return appends(LAYER)


@row
def append_on_a_volume():
    return appends(VOLUME)


@row
def flags_and_owner():
    """O_NONBLOCK, O_CLOEXEC, O_SYNC, and who gets signals about it."""
    first = os.open(place("flags"), os.O_RDWR | os.O_NONBLOCK | os.O_SYNC)
    second = os.open(place("flags"), os.O_RDONLY | os.O_NOFOLLOW)
    os.set_inheritable(second, True)
    reader, writer = os.pipe2(os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(reader, 10, signal.SIGRTMIN)  # F_SETSIG
    look = lambda: [(fcntl.fcntl(each, fcntl.F_GETFL), fcntl.fcntl(each, fcntl.F_GETFD), fcntl.fcntl(each, fcntl.F_GETOWN),
                     fcntl.fcntl(each, 11)) for each in (first, second, reader, writer)]
    before = look()
    while True:
        yield
        same(before, look())


@row
def many_files():
    """300 descriptors, with gaps between their numbers."""
    path = place("many", b"x")
    numbers = [os.dup2(os.open(path, os.O_RDONLY), 200 + 3 * number) for number in range(300)]
    look = lambda: [os.fstat(number).st_ino for number in numbers]
    count = len(os.listdir("/proc/self/fd"))
    while True:
        yield
        same([os.stat(path).st_ino] * 300, look())
        same(count, len(os.listdir("/proc/self/fd")))


@row
def large_position():
    """200 MB into a sparse file."""
    descriptor = os.open(place("large"), os.O_RDWR)
    os.pwrite(descriptor, b"far", 200 << 20)
    os.lseek(descriptor, 200 << 20, os.SEEK_SET)
    while True:
        yield
        same(b"far", os.read(descriptor, 10))
        os.lseek(descriptor, 200 << 20, os.SEEK_SET)
        assert os.fstat(descriptor).st_blocks < 1000, "the hole was filled"


@row
def directory_and_path():
    """A directory, and a descriptor that only names a file."""
    place("inside", b"i")
    directory, named = os.open(LAYER, os.O_RDONLY | os.O_DIRECTORY), os.open(LAYER + "/inside", os.O_PATH)
    while True:
        yield
        assert "inside" in os.listdir(directory)
        same(b"i", open(f"/proc/self/fd/{named}", "rb").read())


@row
def devices():
    """null, zero, urandom."""
    descriptors = [os.open(f"/dev/{name}", os.O_RDWR) for name in ("null", "zero", "urandom")]
    while True:
        yield
        same([(1, 3), (1, 5), (1, 9)], [(os.major(s.st_rdev), os.minor(s.st_rdev)) for s in map(os.fstat, descriptors)])
        same(b"\0\0", os.read(descriptors[1], 2))


@row
def proc_files():
    """Files of /proc, of the process itself and of all."""
    status, loads = open("/proc/self/status"), open("/proc/loadavg")
    while True:
        yield
        for file in (status, loads):
            file.seek(0)
            assert file.read()
        status.seek(0)
        assert f"Pid:\t{os.getpid()}\n" in status.read()


def refused(function):
    try:
        function()
    except OSError as error:
        return error.errno
    return "allowed"


@row
def locks():
    """Locks of flock(2) and fcntl(2), of a process and of an open file, and a lease."""
    paths = [place(f"lock-{kind}", b"0123456789") for kind in ("flock", "posix", "ofd")]
    files = [open(path, "r+b") for path in paths]
    record = lambda kind: struct.pack("hhqqi4x", kind, 0, 2, 5, 0)
    fcntl.flock(files[0], fcntl.LOCK_EX)
    fcntl.lockf(files[1], fcntl.LOCK_EX, 5, 2)
    fcntl.fcntl(files[2], 37, record(fcntl.F_WRLCK))  # F_OFD_SETLK

    def attempts():
        return (refused(lambda: fcntl.flock(open(paths[0], "r+b"), fcntl.LOCK_SH | fcntl.LOCK_NB)),
                refused(lambda: fcntl.lockf(open(paths[1], "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 3)),
                refused(lambda: fcntl.lockf(open(paths[1], "r+b"), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 8)),
                refused(lambda: fcntl.fcntl(open(paths[2], "r+b"), 37, record(fcntl.F_RDLCK))))

    other = Asked(attempts)
    held = repr((errno.EAGAIN, errno.EAGAIN, "allowed", errno.EAGAIN))
    same(held, other())
    while True:
        yield
        same(held, other())


def deleted(size, where=LAYER):
    path = place(f"deleted-{size}", b"", where)
    descriptor = os.open(path, os.O_RDWR)
    block = os.urandom(1 << 16)
    for _ in range(size >> 16):
        os.write(descriptor, block)
    os.lseek(descriptor, 99, os.SEEK_SET)
    os.unlink(path)
    digest = lambda: hashlib.sha256(b"".join(os.pread(descriptor, 1 << 20, at) for at in range(0, size, 1 << 20))).digest()
    look = lambda: (os.lseek(descriptor, 0, os.SEEK_CUR), os.fstat(descriptor).st_size, os.fstat(descriptor).st_nlink,
                    digest(), os.path.exists(path))
    before = look()
    while True:
        yield
        same(before, look())


@row
def deleted_file():
    return deleted(1 << 16)


@row
def deleted_file_of_16_mb():
    return deleted(16 << 20)


@row
def deleted_file_on_the_containers_tmpfs():
    return deleted(1 << 17, TMPFS)


@row
def deleted_file_on_a_volume():
    return deleted(1 << 18, VOLUME)


@row
def deleted_directory():
    """A working directory that is gone."""
    os.makedirs(LAYER + "/gone")
    os.chdir(LAYER + "/gone")
    os.rmdir(LAYER + "/gone")
    while True:
        yield
        same([], os.listdir("."))
        same(LAYER + "/gone (deleted)", os.readlink("/proc/self/cwd"))


@row
def replaced_file():
    """An open file whose name belongs to another one now."""
    path = place("replaced", b"old")
    descriptor = os.open(path, os.O_RDONLY)
    os.unlink(path)
    place("replaced", b"new")
    while True:
        yield
        same((b"old", b"new"), (os.pread(descriptor, 9, 0), open(path, "rb").read()))


@row
def renamed_file():
    """A file, and the directory that it is in, renamed while it was open."""
    os.makedirs(LAYER + "/before")
    descriptor = os.open(place("name", b"moved", LAYER + "/before"), os.O_RDWR)
    os.rename(LAYER + "/before/name", LAYER + "/before/other")
    os.rename(LAYER + "/before", LAYER + "/after")
    while True:
        yield
        same(LAYER + "/after/other", os.readlink(f"/proc/self/fd/{descriptor}"))
        same(os.stat(LAYER + "/after/other").st_ino, os.fstat(descriptor).st_ino)


@row
def file_without_a_name():
    """O_TMPFILE."""
    os.makedirs(LAYER, exist_ok=True)
    descriptor = os.open(LAYER, os.O_TMPFILE | os.O_RDWR, 0o640)
    os.write(descriptor, b"nameless")
    look = lambda: (os.pread(descriptor, 99, 0), os.fstat(descriptor).st_nlink, os.fstat(descriptor).st_mode)
    before = look()
    while True:
        yield
        same(before, look())


@row
def shared_file_mapping():
    """A file mapped by two processes."""
    path = place("mapped", b"m" * 8192)
    file = open(path, "r+b")
    memory = mmap.mmap(file.fileno(), 0)
    other = Asked(lambda: memory[4097])
    while True:
        yield
        memory[4097] = (memory[4097] + 1) % 256
        same(str(memory[4097]), other())
        same(memory[4097], open(path, "rb").read()[4097])


@row
def pipes():
    """Full, half full, with a size of its own."""
    half, full = os.pipe(), os.pipe2(os.O_NONBLOCK)
    fcntl.fcntl(half[0], fcntl.F_SETPIPE_SZ, 1 << 18)
    size = fcntl.fcntl(full[0], fcntl.F_GETPIPE_SZ)
    while True:
        os.write(half[1], b"h" * 100000)
        same(size, os.write(full[1], b"f" * (2 * size)))
        yield
        same(1 << 18, fcntl.fcntl(half[0], fcntl.F_GETPIPE_SZ))
        got = b""
        while len(got) < 100000:
            got += os.read(half[0], 100000)
        same(b"h" * 100000, got)
        same(errno.EAGAIN, refused(lambda: os.write(full[1], b"f")))
        same(b"f" * size, os.read(full[0], 2 * size))


@row
def fifo():
    """A named pipe with something in it."""
    os.makedirs(LAYER, exist_ok=True)
    os.mkfifo(LAYER + "/fifo")
    descriptor = os.open(LAYER + "/fifo", os.O_RDWR)
    while True:
        os.write(descriptor, b"in the fifo")
        yield
        other = os.open(LAYER + "/fifo", os.O_RDONLY | os.O_NONBLOCK)
        same(b"in the fifo", os.read(other, 99))
        os.close(other)


@row
def unix_pairs():
    """Stream, datagram and packet pairs with what was sent and not read, and one end shut."""
    kinds = socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET
    pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in kinds]
    shut = socket.socketpair()
    shut[0].shutdown(socket.SHUT_WR)
    while True:
        for one, two in pairs:
            one.send(b"first")
            one.send(b"second")
            two.send(b"back")
        yield
        same(b"firstsecond", pairs[0][1].recv(99))
        for one, two in pairs[1:]:
            same((b"first", b"second"), (two.recv(99), two.recv(99)))
        same([b"back"] * 3, [one.recv(99) for one, _ in pairs])
        same(b"", shut[1].recv(1))


def listens(address):
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen(5)
    client = socket.socket(socket.AF_UNIX)
    client.connect(address)
    accepted = server.accept()[0]
    credentials = lambda: struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    before = credentials()
    while True:
        client.send(b"on its way")
        yield
        same(b"on its way", accepted.recv(99))
        accepted.send(b"answer")
        same(b"answer", client.recv(99))
        new = socket.socket(socket.AF_UNIX)
        new.connect(address)
        with server.accept()[0] as other:
            other.send(b"hello")
            same(b"hello", new.recv(9))
        new.close()
        same(before, credentials())


@row
def unix_listening():
    """A socket with a name in the file system, and a connection over it."""
    os.makedirs(LAYER, exist_ok=True)
    return listens(LAYER + "/socket")


@row
def unix_abstract():
    """A socket with an abstract name, and a connection over it."""
    return listens("\0abstract of a row")


@row
def unix_not_accepted():
    """A connection that waits to be accepted."""
    server = socket.socket(socket.AF_UNIX)
    server.bind("\0not accepted")
    server.listen(5)
    while True:
        client = socket.socket(socket.AF_UNIX)
        client.connect("\0not accepted")
        yield
        with server.accept()[0] as accepted:
            client.send(b"at last")
            same(b"at last", accepted.recv(9))
        client.close()


@row
def passed_descriptor():
    """A descriptor on its way through a socket."""
    one, two = socket.socketpair()
    path = place("passed", b"passed on")
    while True:
        descriptor = os.open(path, os.O_RDONLY)
        socket.send_fds(one, [b"!"], [descriptor])
        os.close(descriptor)
        yield
        received = socket.recv_fds(two, 9, 1)[1]
        same(b"passed on", os.pread(received[0], 99, 0))
        os.close(received[0])


@row
def epoll():
    """Sets with level, edge and one-shot events, and a set in a set."""
    inner, outer = select.epoll(), select.epoll()
    ready, quiet, once = os.pipe(), os.pipe(), os.pipe()
    os.write(ready[1], b"r")
    inner.register(ready[0], select.EPOLLIN)
    inner.register(quiet[0], select.EPOLLIN | select.EPOLLET)
    inner.register(once[0], select.EPOLLIN | select.EPOLLONESHOT)
    outer.register(inner.fileno(), select.EPOLLIN)
    sets = lambda: sorted(line for line in open(f"/proc/self/fdinfo/{inner.fileno()}") if line.startswith("tfd"))
    fields = lambda: [line.split()[:6] for line in sets()]
    while True:
        before = fields()
        yield
        same(before, fields())
        same([(inner.fileno(), select.EPOLLIN)], outer.poll(5))
        assert (ready[0], select.EPOLLIN) in inner.poll(5)


@row
def eventfds():
    """Counters, empty and not."""
    counter, empty = os.eventfd(7, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    while True:
        yield
        same(errno.EAGAIN, refused(lambda: os.eventfd_read(empty)))
        same(7, os.eventfd_read(counter))
        os.eventfd_write(counter, 7)


@row
def inotify():
    """Watches of a file and of a directory on the writable layer."""
    path = place("watched", b"w")
    os.makedirs(LAYER + "/watched-directory", exist_ok=True)
    descriptor = call("inotify_init1", os.O_NONBLOCK)
    call("inotify_add_watch", descriptor, path.encode(), 2)  # IN_MODIFY
    call("inotify_add_watch", descriptor, (LAYER + "/watched-directory").encode(), 0x100)  # IN_CREATE
    number = 0
    while True:
        yield
        number += 1
        open(path, "ab").write(b"more")
        open(f"{LAYER}/watched-directory/{number}", "w").close()
        events, got = os.read(descriptor, 4096), []
        while events:
            watch, mask, _, length = struct.unpack("iIII", events[:16])
            got.append((watch, mask, events[16:16 + length].rstrip(b"\0").decode()))
            events = events[16 + length:]
        same([(1, 2, ""), (2, 0x100, str(number))], got)


@row
def terminal():
    """A pair of pseudo terminals: settings, size, what was typed and not read."""
    master, slave = os.openpty()
    tty.setraw(slave)
    attributes = termios.tcgetattr(slave)
    attributes[3] |= termios.ECHOCTL
    attributes[6][termios.VMIN] = 3
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", 33, 99, 0, 0))
    look = lambda: (termios.tcgetattr(slave), fcntl.ioctl(slave, termios.TIOCGWINSZ, b"\0" * 8), os.ttyname(slave))
    before = look()
    while True:
        yield
        same(before, look())
        os.write(master, b"typed")
        same(b"typed", os.read(slave, 9))
        os.write(slave, b"shown")
        same(b"shown", os.read(master, 9))


@row
def controlling_terminal():
    """A session with a terminal: its foreground group, and the signal that a key sends to it."""
    pid, master = os.forkpty()
    if pid == 0:
        signal.signal(signal.SIGINT, lambda *_: os.write(1, b"interrupted"))
        os.write(1, b"ready")
        while True:
            signal.pause()
    heard = b""
    while b"ready" not in heard:
        heard += os.read(master, 99)
    look = lambda: open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[4:6]
    before = look()
    same(str(pid), before[1])
    while True:
        yield
        same(before, look())
        os.write(master, b"\x03")
        heard = b""
        while b"interrupted" not in heard:
            assert select.select([master], [], [], 10)[0], heard
            heard += os.read(master, 99)


@row
def signalfd():
    """A descriptor for signals, with one that came."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    mask = (ctypes.c_ulong * 16)(1 << (signal.SIGUSR1 - 1))
    descriptor = call("signalfd", -1, ctypes.byref(mask), os.O_NONBLOCK)
    while True:
        os.kill(os.getpid(), signal.SIGUSR1)
        yield
        information = os.read(descriptor, 128)
        same((signal.SIGUSR1, os.getpid()), (struct.unpack_from("I", information)[0], struct.unpack_from("I", information, 12)[0]))

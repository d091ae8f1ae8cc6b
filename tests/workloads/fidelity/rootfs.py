# SPDX-License-Identifier: Apache-2.0
"""Rows about the container's root file system: what it has written, changed and deleted there.

After the first restore each row changes more, so that the second one has two layers to put together.
"""

import hashlib
import os
import shutil
import stat
import time

from row import call, rows, same

ROWS, row = rows()
HOME = "/var/tmp/rootfs"


def home(name):
    path = f"{HOME}/{name}"
    os.makedirs(path)
    return path


def put(path, content):
    with open(path, "wb") as file:
        file.write(content)


def take(path):
    with open(path, "rb") as file:
        return file.read()


def look(path, times=True):
    """Everything about a file but its inode number; archives hold times in seconds."""
    s = os.lstat(path)
    content = os.readlink(path) if stat.S_ISLNK(s.st_mode) else take(path) if stat.S_ISREG(s.st_mode) else None
    names = {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}
    return s.st_mode, s.st_uid, s.st_gid, s.st_rdev, s.st_nlink, s.st_mtime_ns // 10**9 if times else 0, content, names


@row
def created():
    """Files, directories and links with modes, owners, times and unusual names."""
    base = home("created")
    paths = [f"{base}/{name}" for name in ("plain", "line\nbreak", "ünïcode", "x" * 255, "spaces and \\ '\"")]
    for number, path in enumerate(paths):
        put(path, path.encode())
        os.chmod(path, 0o4755 - number)
        os.utime(path, ns=(10**18 + number * 10**9, 10**18 + number * 10**9))
    os.mkdir(f"{base}/directory", 0o1751)
    os.symlink("plain", f"{base}/link")
    os.symlink("/nowhere/at/all", f"{base}/dangling")
    paths += [f"{base}/directory", f"{base}/link", f"{base}/dangling"]
    before = [look(path) for path in paths]
    round_number = 0
    while True:
        yield
        same(before, [look(path) for path in paths])
        round_number += 1
        paths.append(f"{base}/later-{round_number}")
        put(paths[-1], b"later")
        before = [look(path) for path in paths]


@row
def owners():
    """Files of other users and groups."""
    base = home("owners")
    put(f"{base}/file", b"")
    os.chown(f"{base}/file", 1234, 70000)
    os.chmod(f"{base}/file", 0o6710)
    os.chown(base, 5, 6)
    while True:
        yield
        same((1234, 70000, 0o6710, 5, 6), (*os.stat(f"{base}/file")[4:6], stat.S_IMODE(os.stat(f"{base}/file").st_mode),
                                           *os.stat(base)[4:6]))


@row
def changed():
    """Files and a directory of the image: content, mode, owner."""
    with open("/etc/passwd", "ab") as file:
        file.write(b"more:x:7:7::/:\n")
    os.chmod("/etc/group", 0o600)
    os.chmod("/root", 0o711)
    while True:
        before = look("/etc/passwd"), look("/etc/group"), stat.S_IMODE(os.stat("/root").st_mode)
        yield
        same(before, (look("/etc/passwd"), look("/etc/group"), stat.S_IMODE(os.stat("/root").st_mode)))
        with open("/etc/group", "ab") as file:
            file.write(b"more:x:7:\n")


@row
def deleted():
    """A file and a directory of the image, and later what was created before the first freeze."""
    base = home("deleted")
    put(f"{base}/created-then-deleted", b"")
    os.makedirs(f"{base}/directory/in/it")
    put(f"{base}/directory/in/it/file", b"")
    gone = ["/usr/bin/wget", "/usr/lib/python3.14/email"]
    os.unlink(gone[0])
    shutil.rmtree(gone[1])
    yield
    same([], [path for path in gone if os.path.lexists(path)])
    os.unlink(f"{base}/created-then-deleted")
    shutil.rmtree(f"{base}/directory/in")
    gone += [f"{base}/created-then-deleted", f"{base}/directory/in"]
    while True:
        yield
        same([], [path for path in gone if os.path.lexists(path)])
        assert "wget" not in os.listdir("/usr/bin")


@row
def replaced():
    """A file by a directory, a directory by a file, a file by a link; and again after the first restore."""
    base = home("replaced")
    os.unlink("/usr/bin/vi")
    os.mkdir("/usr/bin/vi")
    put("/usr/bin/vi/inside", b"inside")
    shutil.rmtree("/usr/lib/python3.14/wsgiref")
    put("/usr/lib/python3.14/wsgiref", b"a file now")
    os.unlink("/usr/bin/tac")
    os.symlink("cat", "/usr/bin/tac")
    os.mkdir(f"{base}/turns")
    put(f"{base}/turns/old", b"")
    kinds = lambda: (os.listdir("/usr/bin/vi"), take("/usr/lib/python3.14/wsgiref"), os.readlink("/usr/bin/tac"))
    yield
    same((["inside"], b"a file now", "cat"), kinds())
    shutil.rmtree(f"{base}/turns")
    put(f"{base}/turns", b"a file")
    os.unlink("/usr/lib/python3.14/wsgiref")
    os.mkdir("/usr/lib/python3.14/wsgiref")
    while True:
        yield
        same((b"a file", [], ["inside"]), (take(f"{base}/turns"), os.listdir("/usr/lib/python3.14/wsgiref"), os.listdir("/usr/bin/vi")))


@row
def opaque():
    """A directory of the image that was deleted and made again holds only what is new."""
    place, base = "/usr/lib/python3.14/sqlite3", home("opaque")
    assert os.listdir(place)
    shutil.rmtree(place)
    os.mkdir(place)
    put(f"{place}/new", b"")
    os.mkdir(f"{base}/own")
    put(f"{base}/own/old", b"")
    yield
    same(["new"], os.listdir(place))
    shutil.rmtree(f"{base}/own")
    os.mkdir(f"{base}/own")
    put(f"{base}/own/new", b"")
    while True:
        yield
        same((["new"], ["new"]), (os.listdir(place), os.listdir(f"{base}/own")))


@row
def renamed():
    """A file of the image, and a directory that was created."""
    base = home("renamed")
    content = take("/usr/lib/python3.14/this.py")
    os.rename("/usr/lib/python3.14/this.py", f"{base}/this.py")
    os.makedirs(f"{base}/one/two")
    os.rename(f"{base}/one", f"{base}/three")
    yield
    same((content, False), (take(f"{base}/this.py"), os.path.exists("/usr/lib/python3.14/this.py")))
    os.rename(f"{base}/this.py", f"{base}/that.py")
    while True:
        yield
        same((False, ["two"], content),
             (os.path.lexists(f"{base}/this.py"), os.listdir(f"{base}/three"), take(f"{base}/that.py")))


@row
def capabilities_of_a_program():
    """The extended attribute that gives a program capabilities."""
    base = home("capabilities")
    put(f"{base}/program", b"x")
    # VFS_CAP_REVISION_2, CAP_NET_RAW permitted. Source: linux/capability.h.
    capability = bytes.fromhex("0000000200200000000000000000000000000000")
    os.setxattr(f"{base}/program", "security.capability", capability)
    while True:
        yield
        same(capability, os.getxattr(f"{base}/program", "security.capability"))


@row
def hard_links():
    """Three names of one file, in two directories."""
    base = home("links")
    os.mkdir(f"{base}/inner")
    names = [f"{base}/first", f"{base}/second", f"{base}/inner/third"]
    put(names[0], b"one file")
    os.link(names[0], names[1])
    os.link(names[0], names[2])
    while True:
        yield
        stats = [os.stat(name) for name in names]
        same((1, 3), (len({each.st_ino for each in stats}), stats[0].st_nlink))
        same([b"one file"] * 3, [take(name) for name in names])


@row
def special_files():
    """Devices, a fifo."""
    base = home("special")
    os.mknod(f"{base}/null", stat.S_IFCHR | 0o640, os.makedev(1, 3))
    os.mknod(f"{base}/disk", stat.S_IFBLK | 0o600, os.makedev(7, 99))
    os.mkfifo(f"{base}/fifo", 0o620)
    names = sorted(os.listdir(base))
    before = [look(f"{base}/{name}", times=False)[:4] for name in names]
    while True:
        yield
        same(["disk", "fifo", "null"], sorted(os.listdir(base)))
        same(before, [look(f"{base}/{name}", times=False)[:4] for name in names])


@row
def sparse_file():
    """256 MB of which some kilobytes are there."""
    path = home("sparse") + "/file"
    with open(path, "wb") as file:
        for at in (0, 100 << 20, (256 << 20) - 5):
            file.seek(at)
            file.write(b"there")
    while True:
        yield
        with open(path, "rb") as file:
            for at in (0, 100 << 20, (256 << 20) - 5):
                file.seek(at)
                same(b"there", file.read(5))
        assert os.stat(path).st_blocks < 1000, f"{os.stat(path).st_blocks} blocks: the holes were filled"


@row
def large_file():
    """32 MB, that were changed in the middle after the first restore."""
    path = home("large") + "/file"
    put(path, os.urandom(32 << 20))
    digest = lambda: hashlib.sha256(take(path)).hexdigest()
    before = digest()
    while True:
        yield
        same(before, digest())
        with open(path, "r+b") as file:
            file.seek(16 << 20)
            file.write(b"changed")
        before = digest()

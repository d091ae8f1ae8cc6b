#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One of two programs that count in turns, in two containers of a pod.

    pair.py left|right

Each keeps its number in its own memory, and writes it into a page of /dev/shm that both have mapped and into a file on
the volume /data. A number may never be two ahead of the other one's, wherever it is found: programs that were frozen one
after the other would see that at once. Says `started`, then `at N` now and then; `broken: ...` when it finds what cannot
be, and goes on no more.
"""

import mmap
import os
import struct
import sys
import time

PAGE = "/dev/shm/pair"
OFTEN = 25


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.01)


def page():
    if side == "left":
        with open(PAGE + ".new", "wb") as new:
            new.write(bytes(4096))
        os.rename(PAGE + ".new", PAGE)
    wait_for(PAGE)
    with open(PAGE, "r+b") as file:
        return mmap.mmap(file.fileno(), 4096)


def volume(name, flags):
    path = f"/data/{name}"
    if flags == os.O_RDONLY:
        wait_for(path)
        return os.open(path, flags)
    os.close(os.open(path + ".new", os.O_WRONLY | os.O_CREAT))
    os.pwrite(descriptor := os.open(path + ".new", os.O_RDWR), struct.pack("<Q", 0), 0)
    os.rename(path + ".new", path)
    return descriptor


side = sys.argv[1]
print("started", flush=True)
shared = page()
slots = {"left": 0, "right": 8}
other = "right" if side == "left" else "left"
own_file = volume(side, os.O_RDWR)
other_file = volume(other, os.O_RDONLY)
mine = 0
while True:
    in_memory = struct.unpack_from("<Q", shared, slots[other])[0]
    on_volume = struct.unpack("<Q", os.pread(other_file, 8, 0))[0]
    kept = struct.unpack_from("<Q", shared, slots[side])[0]
    written = struct.unpack("<Q", os.pread(own_file, 8, 0))[0]
    # The left one goes first; each waits until the other one has written the number before in both places.
    allowed = (mine - 1, mine) if side == "left" else (mine, mine + 1)
    if in_memory not in allowed or on_volume not in allowed or (kept, written) != (mine, mine):
        print(f"broken: mine {mine}, theirs {in_memory} and {on_volume}, kept {kept} and {written}", flush=True)
        time.sleep(1000000)
    if in_memory == on_volume == (mine if side == "left" else mine + 1):
        mine += 1
        struct.pack_into("<Q", shared, slots[side], mine)
        os.pwrite(own_file, struct.pack("<Q", mine), 0)
        if mine % OFTEN == 0:
            print(f"at {mine}", flush=True)
    time.sleep(0.001)

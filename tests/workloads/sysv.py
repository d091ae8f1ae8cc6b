#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One of two programs in two containers of a pod that share System V objects.

    sysv.py first|second [attach]

Both have a set of semaphores and a queue of messages, and a shared memory segment that only those attach that are told to.
Says `started`, then `at N` now and then; `broken: ...` when something is not as it was left, and goes on no more.
"""

import ctypes
import sys
import time

SEGMENT, SEMAPHORES, QUEUE = 0x7B01, 0x7B02, 0x7B03
IPC_CREAT, IPC_STAT, GETVAL, SETVAL = 0o1000, 2, 12, 16
SIZE = 8192

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p


def call(name, *arguments):
    result = getattr(libc, name)(*arguments)
    if result == -1:
        raise OSError(ctypes.get_errno(), name)
    return result


def messages():
    """How many are in the queue: msg_qnum of struct msqid64_ds."""
    state = (ctypes.c_uint64 * 16)()
    call("msgctl", queue, IPC_STAT, state)
    return state[10]


first, attach = sys.argv[1] == "first", "attach" in sys.argv[2:]
print("started", flush=True)
segment = call("shmget", SEGMENT, SIZE, IPC_CREAT | 0o600)
semaphores = call("semget", SEMAPHORES, 2, IPC_CREAT | 0o600)
queue = call("msgget", QUEUE, IPC_CREAT | 0o600)
if first:
    call("msgsnd", queue, b"\1" + bytes(7) + b"message!", 8, 0)
    call("semctl", semaphores, 1, SETVAL, 7)
while call("semctl", semaphores, 1, GETVAL) != 7:
    time.sleep(0.01)
memory = (ctypes.c_uint64 * (SIZE // 8)).from_address(libc.shmat(segment, None, 0)) if attach else None
# Each writes a place of its own.
mine = 0 if first else 1
count = 0
while True:
    found = {
        "segment": call("shmget", SEGMENT, SIZE, 0) == segment,
        "semaphores": call("semget", SEMAPHORES, 2, 0) == semaphores and call("semctl", semaphores, 1, GETVAL) == 7,
        "queue": call("msgget", QUEUE, 0) == queue and messages() == 1,
        "memory": memory is None or memory[mine] == count,
    }
    wrong = [what for what, right in found.items() if not right]
    if wrong:
        print("broken:", *wrong, flush=True)
        time.sleep(10**6)
    count += 1
    if memory is not None:
        memory[mine] = count
    if count % 25 == 0:
        print("at", count, flush=True)
    time.sleep(0.01)

# SPDX-License-Identifier: Apache-2.0
"""Listens on the pod's own addresses, holds a device open, and tells what it finds around it."""

import json
import os
import socket
import threading
import time

PORT = 7100


def own_addresses():
    """The pod's addresses of the wanted families, when it starts; it never looks again."""
    families = os.environ["FAMILIES"]
    if "4" in families:
        yield socket.AF_INET, socket.gethostbyname(socket.gethostname())
    if "6" in families:
        for line in open("/proc/net/if_inet6"):
            digits, _, _, scope, _, name = line.split()
            if name != "lo" and scope == "00":
                yield socket.AF_INET6, socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))


def numbers(descriptor):
    device = os.fstat(descriptor).st_rdev
    return f"{os.major(device)}:{os.minor(device)}"


def serve(listener, held, started):
    while True:
        connection, _ = listener.accept()
        again = os.open("/dev/gpu0", os.O_WRONLY)
        said = {
            "started": started,
            "held": numbers(held),
            "again": numbers(again),
            "mount": open("/data/name").read(),
            "address": listener.getsockname()[0],
        }
        os.close(again)
        connection.sendall(json.dumps(said).encode())
        connection.close()


held = os.open("/dev/gpu0", os.O_WRONLY)
started = str(time.time_ns())
for family, address in own_addresses():
    listener = socket.create_server((address, PORT), family=family)
    threading.Thread(target=serve, args=(listener, held, started), daemon=True).start()
print("listening", flush=True)
while True:
    time.sleep(1)

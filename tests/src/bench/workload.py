# SPDX-License-Identifier: Apache-2.0
# The program that the benchmark freezes: holds argv[1] MiB of random memory, has written 100 MiB to its root file
# system, moves a heartbeat every 2 ms, and answers any HTTP request with a checksum of its memory.
import os, socket, sys, threading, time, zlib

MIB = 1 << 20


def answer():
    while True:
        connection, _ = listener.accept()
        connection.recv(4096)
        crc = 0
        for block in memory:
            crc = zlib.crc32(block, crc)
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n%08x" % crc)
        connection.close()


memory = [bytearray(os.urandom(16 * MIB)) for _ in range(int(sys.argv[1]) // 16)]
with open("/var/data", "wb") as file:
    for _ in range(100):
        file.write(os.urandom(MIB))
# Whoever has seen a beat may ask.
listener = socket.create_server(("", 8080))
threading.Thread(target=answer, daemon=True).start()
# The width never changes: CRIU refuses a file whose size is not what it was.
heartbeat = os.open("/heartbeat/count", os.O_WRONLY)
count = 0
while True:
    count += 1
    os.pwrite(heartbeat, b"%020d" % count, 0)
    time.sleep(0.002)

#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Counts, holds memory that cannot be compressed, and tells over HTTP how it is: a program worth resuming.

It knows by itself whether it went on or began again: `started` and `count` are in its memory alone, and the memory's
checksum can be taken again at any time.

    GET /             state as JSON
    GET /verify       takes the checksum again, then as /
    GET /exit?code=N  ends the program with exit code N

environment: MB (64), PORT (8080), HEARTBEAT (a file that always holds the count, 20 digits)
"""

import http.server
import json
import os
import signal
import socket
import sys
import threading
import time
import urllib.parse
import zlib

CHUNK = 1 << 20
TICK_SECONDS = 0.005
LOG_SECONDS = 1.0


class Counter:
    """The program's whole state."""

    def __init__(self, megabytes):
        self.started = time.time_ns()
        self.count = 0
        self.memory = [os.urandom(CHUNK) for _ in range(megabytes)]
        self.sum = self.checksum()
        self.crc_ok = True

    def checksum(self):
        value = 0
        for chunk in self.memory:
            value = zlib.crc32(chunk, value)
        return value

    def verify(self):
        self.crc_ok = self.checksum() == self.sum

    def state(self):
        return {
            "count": self.count,
            "mb": len(self.memory),
            "crc_ok": self.crc_ok,
            "hostname": socket.gethostname(),
            "pid": os.getpid(),
            "started": str(self.started),
        }


def serve(counter, port):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            url = urllib.parse.urlsplit(self.path)
            if url.path == "/exit":
                os._exit(int(urllib.parse.parse_qs(url.query)["code"][0]))
            if url.path == "/verify":
                counter.verify()
            elif url.path != "/":
                self.send_error(404)
                return
            body = json.dumps(counter.state()).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Keeps requests out of the log: it shows the count alone."""

    server = http.server.ThreadingHTTPServer(("0.0.0.0", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()


def main():
    counter = Counter(int(os.environ.get("MB", "64")))
    heartbeat = os.environ.get("HEARTBEAT")
    # The file keeps its size: CRIU refuses an open file whose size has changed since the dump.
    file = os.open(heartbeat, os.O_WRONLY | os.O_CREAT, 0o644) if heartbeat else None

    def stop(*_):
        print(f"stopped at {counter.count}", flush=True)
        sys.exit(0)

    # The first process of a container gets no signal that it has no handler for.
    signal.signal(signal.SIGTERM, stop)
    serve(counter, int(os.environ.get("PORT", "8080")))

    next_line = time.monotonic()
    while True:
        counter.count += 1
        if file is not None:
            os.pwrite(file, b"%020d" % counter.count, 0)
        if time.monotonic() >= next_line:
            print(f"count {counter.count}", flush=True)
            next_line += LOG_SECONDS
        time.sleep(TICK_SECONDS)


if __name__ == "__main__":
    main()

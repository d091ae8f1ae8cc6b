#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs one small program for each row of docs/fidelity.md, and asks them whether they are as they were.

Each row is a generator function: up to its first `yield` it sets its piece of state up, and after each `yield` it
checks it; an exception is the verdict. Each runs in a process of its own, so rows do not meet.

    main.py GROUP [ROW...]

    GET /          the rows whose state is set up, and what went wrong with others: {ROW: "ok" or a text}
    GET /verify    lets every row check itself, then as /
"""

import http.server
import importlib
import json
import os
import select
import sys
import traceback

PORT = 8080
LIMIT_SECONDS = 60


class Row:
    """One row's process, and the pipes to it."""

    def __init__(self, function, inherited):
        ask_read, self.ask = os.pipe()
        self.answer, answer_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            for descriptor in [*inherited, self.ask, self.answer]:
                os.close(descriptor)
            serve_row(function, ask_read, answer_write)
        os.close(ask_read)
        os.close(answer_write)

    def hear(self):
        said = bytearray()
        while not said.endswith(b"\0"):
            if not select.select([self.answer], [], [], LIMIT_SECONDS)[0]:
                return f"no answer within {LIMIT_SECONDS} s"
            more = os.read(self.answer, 1 << 16)
            if not more:
                return f"ended: {said.decode(errors='replace')}"
            said += more
        return said[:-1].decode(errors="replace")

    def verify(self):
        try:
            os.write(self.ask, b"?")
        except OSError as error:
            return f"cannot be asked: {error}"
        return self.hear()


def serve_row(function, ask, answer):
    """The row's process: never returns."""
    state = function()
    while True:
        try:
            next(state)
            verdict = "ok"
        except BaseException:  # noqa: BLE001 - whatever it is, it is the verdict
            verdict = traceback.format_exc(limit=-3)
        os.write(answer, verdict.encode() + b"\0")
        if not os.read(ask, 1):
            os._exit(0)


def serve(rows, verdicts):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/verify":
                verdicts.update({name: row.verify() for name, row in rows.items()})
            body = json.dumps(verdicts).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            """Keeps requests out of the log."""

    http.server.HTTPServer(("0.0.0.0", PORT), Handler).serve_forever()


def main():
    group, wanted = sys.argv[1], sys.argv[2:]
    functions = importlib.import_module(group).ROWS
    rows, verdicts, inherited = {}, {}, []
    for name, function in functions.items():
        if wanted and name not in wanted:
            continue
        rows[name] = row = Row(function, inherited)
        inherited += [row.ask, row.answer]
        verdicts[name] = row.hear()
        print(f"{name}: {verdicts[name]}", flush=True)
    serve(rows, verdicts)


if __name__ == "__main__":
    main()

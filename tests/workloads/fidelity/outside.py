#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Asks a server in a pod from outside, as a client that connects again would: outside.py ROW ADDRESS. Prints `ok`."""

import asyncio
import json
import os
import subprocess
import sys
import time
import urllib.request

LIMIT_SECONDS = 50
# Of the notebook in the documentation; the other servers let everybody in.
TOKEN = "change-me"


def fetch(address, port, path="/", data=None):
    request = urllib.request.Request(f"http://{address}:{port}{path}", data, {"Authorization": f"token {TOKEN}"})
    with urllib.request.urlopen(request, timeout=LIMIT_SECONDS) as answer:
        return answer.read().decode()


async def cell(address, code=""):
    """A page that is opened again finds the kernel and what was computed in it."""
    import tornado.websocket

    number = json.loads(fetch(address, 8888, "/api/kernels"))[0]["id"]
    url = f"ws://{address}:8888/api/kernels/{number}/channels?token={TOKEN}"
    connection = await tornado.websocket.websocket_connect(url)
    content = {"code": code, "silent": False, "user_expressions": {"sum": "float(matrix.sum())"}}
    header = {"msg_id": "outside", "msg_type": "execute_request", "session": "o", "username": "u", "version": "5.3"}
    await connection.write_message(json.dumps({"header": header, "parent_header": {}, "metadata": {},
                                               "content": content, "channel": "shell", "buffers": []}))
    while True:
        said = json.loads(await connection.read_message())
        if said["msg_type"] == "execute_reply" and said["parent_header"].get("msg_id") == "outside":
            return said["content"]["user_expressions"]["sum"]["data"]["text/plain"]


def jupyter(address):
    assert asyncio.run(asyncio.wait_for(cell(address), LIMIT_SECONDS)) == "49995000.0"


def notebook(address):
    """A new kernel, with a cell that the page of a resumed notebook finds (`jupyter`)."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while True:
        try:
            fetch(address, 8888, "/api/kernels", b'{"name": "python3"}')
            break
        except OSError:
            # The server is still starting.
            assert time.monotonic() < deadline
            time.sleep(0.5)
    code = "import numpy\nmatrix = numpy.arange(10000.0).reshape(100, 100)"
    assert asyncio.run(asyncio.wait_for(cell(address, code), LIMIT_SECONDS)) == "49995000.0"


def postgresql(address):
    said = subprocess.run(["psql", "-XAtqh", address, "-U", "postgres", "-c", "SELECT count(*) > 0 FROM rows"],
                          env=os.environ | {"PGCONNECT_TIMEOUT": "30"}, capture_output=True, text=True, check=False)
    assert said.stdout == "t\n", said


def redis(address):
    said = subprocess.run(["redis-cli", "-h", address, "GET", "key-7"], capture_output=True, text=True, check=True)
    assert said.stdout == "value-7\n", said


def nginx(address):
    assert fetch(address, 8000) == "a page\n"


def java(address):
    assert int(fetch(address, 8000, "/ticks")) > 0


nodejs = java

if __name__ == "__main__":
    globals()[sys.argv[1]](sys.argv[2])
    print("ok")

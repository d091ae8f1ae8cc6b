#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Asks a server in a pod from outside, as a client that connects again would: outside.py ROW ADDRESS. Prints `ok`."""

import asyncio
import json
import os
import subprocess
import sys
import urllib.request

LIMIT_SECONDS = 50


def fetch(address, port, path="/"):
    with urllib.request.urlopen(f"http://{address}:{port}{path}", timeout=LIMIT_SECONDS) as answer:
        return answer.read().decode()


async def cell(address):
    """A page that is opened again finds the kernel and what was computed in it."""
    import tornado.websocket

    number = json.loads(fetch(address, 8888, "/api/kernels"))[0]["id"]
    connection = await tornado.websocket.websocket_connect(f"ws://{address}:8888/api/kernels/{number}/channels")
    content = {"code": "", "silent": False, "user_expressions": {"sum": "float(matrix.sum())"}}
    header = {"msg_id": "outside", "msg_type": "execute_request", "session": "o", "username": "u", "version": "5.3"}
    await connection.write_message(json.dumps({"header": header, "parent_header": {}, "metadata": {},
                                               "content": content, "channel": "shell", "buffers": []}))
    while True:
        said = json.loads(await connection.read_message())
        if said["msg_type"] == "execute_reply" and said["parent_header"].get("msg_id") == "outside":
            return said["content"]["user_expressions"]["sum"]["data"]["text/plain"]


def jupyter(address):
    assert asyncio.run(asyncio.wait_for(cell(address), LIMIT_SECONDS)) == "49995000.0"


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

# SPDX-License-Identifier: Apache-2.0
"""Servers of Debian: each is started and asked as a user would, with clients inside the pod that stay connected.

Up to its first `yield` a row starts its program and gets a first answer; up to the second one it makes state that only
lives in the program; after each further one it checks that state and goes on with it.
"""

import asyncio
import http.client
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import time
import urllib.request
import uuid

from row import eventually, rows, same

ROWS, row = rows()
HOME = "/var/tmp/apps"


def home(name):
    path = f"{HOME}/{name}"
    os.makedirs(path, exist_ok=True)
    return path


def start(name, *command, **options):
    """Starts a program whose output goes to a file that a failed row can be looked up in."""
    with open(f"{home(name)}/output", "ab") as output:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options)


def connected(port, seconds=50):
    """A connection to a port of this pod, as soon as somebody listens there."""
    end = time.monotonic() + seconds
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=30)
        except OSError:
            assert time.monotonic() < end, f"nobody listens on port {port}"
            time.sleep(0.01)


def get(port, path="/"):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        return answer.read().decode()


class Kernel:
    """A notebook's connection to its kernel: a WebSocket of the server, beyond which are the kernel's ZeroMQ sockets."""

    def __init__(self, port, kernel):
        import tornado.websocket

        async def connect():
            return await tornado.websocket.websocket_connect(f"ws://127.0.0.1:{port}/api/kernels/{kernel}/channels")

        self.loop = asyncio.new_event_loop()
        self.socket = self.loop.run_until_complete(connect())

    def run(self, code, answer="None"):
        """Runs a cell; what `answer` is then. What cells print is of no use: IPython's own threads print too."""
        return self.loop.run_until_complete(asyncio.wait_for(self.exchange(code, answer), 50))

    async def exchange(self, code, answer):
        number = uuid.uuid4().hex
        header = {"msg_id": number, "msg_type": "execute_request", "session": "s", "username": "u", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {"answer": answer},
                   "allow_stdin": False, "stop_on_error": True}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content,
                   "channel": "shell", "buffers": []}
        await self.socket.write_message(json.dumps(message))
        while True:
            said = await self.socket.read_message()
            assert said is not None, "the server closed the connection"
            said = json.loads(said)
            if said["msg_type"] == "execute_reply" and said["parent_header"].get("msg_id") == number:
                assert said["content"]["status"] == "ok", said["content"]
                return said["content"]["user_expressions"]["answer"]["data"]["text/plain"]


@row
def jupyter():
    """A kernel after cells were run: its variables survive, a new cell runs, over the old connection and a new one."""
    start("jupyter", "jupyter-server", "--allow-root", "--no-browser", "--ip=0.0.0.0", "--port=8888",
          "--ServerApp.token=", "--ServerApp.password=", "--ServerApp.disable_check_xsrf=True",
          f"--ServerApp.root_dir={home('jupyter')}")
    connected(8888).close()
    request = urllib.request.Request("http://127.0.0.1:8888/api/kernels", data=b'{"name": "python3"}', method="POST")
    with urllib.request.urlopen(request, timeout=50) as answer:
        number = json.load(answer)["id"]
    kernel = Kernel(8888, number)
    same("42", kernel.run("", "6 * 7"))
    yield
    kernel.run("import numpy\nmatrix = numpy.arange(10000.0).reshape(100, 100)\nlife = 0")
    kernel.run("import threading, time\nticks = []\n"
               "def tick():\n    while True:\n        ticks.append(1)\n        time.sleep(0.01)\n"
               "threading.Thread(target=tick, daemon=True).start()")
    life = 0
    while True:
        yield
        life += 1
        same(f"{life}", kernel.run("life += 1", "life"))
        again = Kernel(8888, number)
        same(f"(49995000.0, {life})", again.run("", "float(matrix.sum()), life"))
        same("True", again.run("was = len(ticks); time.sleep(0.3)", "len(ticks) > was"))
        same([number], [each["id"] for each in json.loads(get(8888, "/api/kernels"))])


def debian_version(folder):
    return max(os.listdir(folder), key=lambda name: [int(part) for part in re.findall(r"\d+", name)])


class Psql:
    """psql that stays connected."""

    def __init__(self, environment, *arguments):
        self.process = subprocess.Popen(
            ["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, bufsize=1, env=environment)

    def ask(self, statement):
        self.process.stdin.write(f"{statement};\n\\echo done\n")
        self.process.stdin.flush()
        lines = []
        while (line := self.process.stdout.readline()) not in ("done\n", ""):
            lines.append(line.rstrip("\n"))
        assert line, f"psql ended: {lines}"
        return lines


@row
def postgresql():
    """A transaction in flight of a client in the pod goes on, over the Unix socket and over TCP."""
    programs = f"/usr/lib/postgresql/{debian_version('/usr/lib/postgresql')}/bin"
    data = f"{home('postgresql')}/data"
    environment = os.environ | {"LC_ALL": "C.UTF-8", "PGUSER": "postgres"}
    switch, server = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"], environment
    shutil.chown(home("postgresql"), "postgres", "postgres")
    made = subprocess.run([*switch, f"{programs}/initdb", "--no-sync", "-A", "trust", "-U", "postgres", "-D", data],
                          env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made
    with open(f"{data}/pg_hba.conf", "a") as access:
        access.write("host all all all trust\n")
    # It refuses to be root. Where the machine cannot freeze processes of other users, it only takes itself for another.
    if os.environ.get("USERS") == "own":
        entry = pwd.getpwnam("postgres")
        faked = {"RUID": entry.pw_uid, "EUID": entry.pw_uid, "RGID": entry.pw_gid, "EGID": entry.pw_gid}
        server = server | {f"UID_WRAPPER_INITIAL_{key}": str(value) for key, value in faked.items()}
        server, switch = server | {"LD_PRELOAD": "libuid_wrapper.so", "UID_WRAPPER": "1"}, []
    start("postgresql", *switch, f"{programs}/postgres", "-D", data, "-k", "/tmp", "-h", "*", env=server)
    connected(5432).close()
    environment["PGCONNECT_TIMEOUT"] = "30"
    ready = lambda: subprocess.run(["psql", "-XAtqh", "127.0.0.1", "-c", "SELECT 1"], env=environment, check=False,
                                   capture_output=True).stdout == b"1\n"
    eventually(ready, 50)
    yield
    clients = [Psql(environment, "-h", "/tmp"), Psql(environment, "-h", "127.0.0.1")]
    clients[0].ask("CREATE TABLE rows (client int, life int)")
    for number, client in enumerate(clients):
        client.ask("BEGIN")
        client.ask(f"INSERT INTO rows VALUES ({number}, 0)")
        client.ask("CREATE TEMPORARY TABLE mine (life int)")
    life = 0
    while True:
        yield
        life += 1
        # Nothing of an open transaction is seen by others.
        same([f"{2 * life - 2}"], Psql(environment, "-h", "127.0.0.1").ask("SELECT count(*) FROM rows"))
        for number, client in enumerate(clients):
            client.ask(f"INSERT INTO mine VALUES ({life})")
            client.ask("COMMIT")
            same([f"{life}"], client.ask(f"SELECT count(*) FROM rows WHERE client = {number}"))
            same([f"{life}"], client.ask("SELECT count(*) FROM mine"))
            client.ask("BEGIN")
            client.ask(f"INSERT INTO rows VALUES ({number}, {life})")


class Redis:
    """A connection that stays."""

    def __init__(self):
        self.socket = connected(6379)
        self.lines = self.socket.makefile("rb")

    def ask(self, *words):
        parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
        self.socket.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
        return self.hear()

    def hear(self):
        line = self.lines.readline().decode().rstrip("\r\n")
        if line.startswith("$") and line != "$-1":
            return self.lines.readline().decode().rstrip("\r\n")
        if line.startswith("*"):
            return [self.hear() for _ in range(int(line[1:]))]
        return line


@row
def redis():
    """Data, an open transaction, a subscriber and one who waits; all that was written is in its file."""
    start("redis", "redis-server", "--dir", home("redis"), "--appendonly", "yes", "--appendfsync", "always", "--save",
          "", "--protected-mode", "no", "--bind", "*")
    writer = Redis()
    eventually(lambda: writer.ask("PING") == "+PONG")
    yield
    transaction, subscriber, waiting = Redis(), Redis(), Redis()
    for number in range(1000):
        writer.ask("SET", f"key-{number}", f"value-{number}")
    same(["subscribe", "news", ":1"], subscriber.ask("SUBSCRIBE", "news"))
    waiting.socket.sendall(b"BLPOP queue 0\r\n")
    transaction.ask("MULTI")
    transaction.ask("INCR", "life")
    life = 0
    while True:
        yield
        life += 1
        same([f":{life}"], transaction.ask("EXEC"))
        transaction.ask("MULTI")
        transaction.ask("INCR", "life")
        same(":1", writer.ask("PUBLISH", "news", "word"))
        same(["message", "news", "word"], subscriber.hear())
        writer.ask("RPUSH", "queue", "thing")
        same(["queue", "thing"], waiting.hear())
        waiting.socket.sendall(b"BLPOP queue 0\r\n")
        same("value-999", Redis().ask("GET", "key-999"))
        same("+OK", writer.ask("SET", "last", f"write-{life}"))
        folder = f"{home('redis')}/appendonlydir"
        written = b"".join(open(f"{folder}/{name}", "rb").read() for name in os.listdir(folder))
        assert f"write-{life}".encode() in written, "the last write is not in the file"


@row
def nginx():
    """A connection that is kept, a request that was sent by half, and the access log goes on."""
    folder = home("nginx")
    with open(f"{folder}/index.html", "w") as page:
        page.write("a page\n")
    with open(f"{folder}/nginx.conf", "w") as settings:
        settings.write(f"""
            user root; worker_processes 2; pid {folder}/pid; error_log {folder}/error.log; daemon off;
            events {{}}
            http {{
                access_log {folder}/access.log; client_body_temp_path {folder}; client_header_timeout 600;
                keepalive_timeout 600; open_file_cache max=10;
                server {{ listen 8000 default_server; listen [::]:8000; root {folder}; }}
            }}""")
    start("nginx", "nginx", "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log")
    connected(8000).close()
    same("a page\n", get(8000))
    yield
    kept = http.client.HTTPConnection("127.0.0.1", 8000, timeout=30)
    ask = lambda: (kept.request("GET", "/"), kept.getresponse().read())[1]
    ask()
    halves = []
    life = 0
    while True:
        half = connected(8000)
        half.sendall(b"GET / HTTP/1.1\r\nHost: pod\r\n")
        halves.append(half)
        yield
        life += 1
        same(b"a page\n", ask())
        half.sendall(b"Connection: close\r\n\r\n")
        answer = half.makefile("rb").read()
        assert answer.endswith(b"a page\n"), answer
        same("a page\n", get(8000))
        eventually(lambda: open(f"{folder}/access.log").read().count("127.0.0.1") == 2 + 3 * life)


JAVA = """
import com.sun.net.httpserver.*;
import java.net.InetSocketAddress;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;

public class Server {
    static final ConcurrentHashMap<String, Integer> table = new ConcurrentHashMap<>();
    static final AtomicLong ticks = new AtomicLong();

    public static void main(String[] arguments) throws Exception {
        var timer = Executors.newScheduledThreadPool(2);
        timer.scheduleAtFixedRate(ticks::incrementAndGet, 0, 10, TimeUnit.MILLISECONDS);
        var server = HttpServer.create(new InetSocketAddress(8000), 0);
        server.setExecutor(Executors.newFixedThreadPool(8));
        server.createContext("/", exchange -> {
            var key = exchange.getRequestURI().getPath();
            String text;
            if (key.equals("/ticks")) {
                text = "" + ticks.get();
            } else if (key.equals("/gc")) {
                var kept = new byte[64][];
                for (int i = 0; i < 4096; i++) kept[i % 64] = new byte[1 << 20];
                System.gc();
                text = "" + kept.length;
            } else {
                text = "" + table.merge(key, 1, Integer::sum);
            }
            exchange.sendResponseHeaders(200, text.length());
            exchange.getResponseBody().write(text.getBytes());
            exchange.close();
        });
        server.start();
    }
}
"""


@row
def java():
    """A server with a table in memory, timers and garbage to collect."""
    with open(f"{home('java')}/Server.java", "w") as source:
        source.write(JAVA)
    start("java", "java", "-Xmx256m", f"{home('java')}/Server.java")
    connected(8000).close()
    same("1", get(8000, "/first"))
    yield
    for _ in range(1000):
        get(8000, "/many")
    many = 1000
    while True:
        yield
        many += 1
        same(str(many), get(8000, "/many"))
        before = int(get(8000, "/ticks"))
        same("64", get(8000, "/gc"))
        eventually(lambda: int(get(8000, "/ticks")) > before + 10)


NODE = """
const http = require('http');
const { Worker } = require('worker_threads');
const fs = require('fs');
const table = {};
let ticks = 0;
setInterval(() => ticks++, 10);
const worker = new Worker("const { parentPort } = require('worker_threads');" +
    "let n = 0; parentPort.on('message', () => parentPort.postMessage(++n))", { eval: true });
http.createServer((request, response) => {
    const key = request.url;
    if (key === '/ticks') return response.end(String(ticks));
    if (key === '/work') { worker.once('message', n => response.end(String(n))); return worker.postMessage(1); }
    if (key === '/file') return fs.readFile(__filename, (error, text) => response.end(error ? String(error) : 'read'));
    table[key] = (table[key] || 0) + 1;
    response.end(String(table[key]));
}).listen(8000);
"""


@row
def nodejs():
    """A server with a table in memory, timers, a worker and files that are read by libuv's threads; the pod forbids io_uring."""
    with open(f"{home('nodejs')}/server.js", "w") as source:
        source.write(NODE)
    start("nodejs", "node", f"{home('nodejs')}/server.js")
    connected(8000).close()
    same("1", get(8000, "/first"))
    yield
    for _ in range(100):
        get(8000, "/many")
    many, worked = 100, 0
    while True:
        yield
        many += 1
        worked += 1
        same(str(many), get(8000, "/many"))
        before = int(get(8000, "/ticks"))
        eventually(lambda: int(get(8000, "/ticks")) > before + 10)
        same("read", get(8000, "/file"))
        same(str(worked), get(8000, "/work"))

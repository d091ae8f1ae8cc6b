#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Holds sockets that are bound to interfaces, and checks them itself when it is asked: a program to freeze.

    links.py             sets everything up and waits
    links.py check WHAT  run in the same container: prints a JSON object, name of a check -> "ok" or what is wrong
"""

import json
import os
import socket
import struct
import sys

CONTROL = "/tmp/links.control"
# Source: linux/if_packet.h, linux/if_ether.h.
SOL_PACKET, PACKET_ADD_MEMBERSHIP, PACKET_MR_MULTICAST, ETH_P_ARP = 263, 1, 0, 0x0806
GROUP = "01005e00004d"


def packet_socket(interface):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ARP))
    sock.bind((interface, ETH_P_ARP))
    return sock


def join(sock, interface):
    group = bytes.fromhex(GROUP).ljust(8, b"\0")
    request = struct.pack("iHH", socket.if_nametoindex(interface), PACKET_MR_MULTICAST, 6) + group
    sock.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, request)


def udp_socket(interface):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
    sock.bind(("", 0))
    return sock


def joined(interface):
    for line in open("/proc/net/dev_mcast"):
        _, name, _, _, group = line.split()
        if (name, group) == (interface, GROUP):
            return True
    return False


def expect(is_so, what):
    return "ok" if is_so else what


def report(first, second, udp):
    bound = udp.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0").decode()
    return {
        "packet socket on eth0": expect(first.getsockname()[0] == "eth0", str(first.getsockname())),
        "packet socket on net1": expect(second.getsockname()[0] == "net1", str(second.getsockname())),
        "group on net1": expect(joined("net1") and not joined("eth0"), open("/proc/net/dev_mcast").read()),
        "udp socket on eth0": expect(bound == "eth0", bound),
    }


def serve():
    first, second, udp = packet_socket("eth0"), packet_socket("net1"), udp_socket("eth0")
    join(second, "net1")
    if os.path.exists(CONTROL):
        os.unlink(CONTROL)
    with socket.socket(socket.AF_UNIX) as control:
        control.bind(CONTROL)
        control.listen()
        print("ready", flush=True)
        while True:
            conn, _ = control.accept()
            with conn:
                conn.recv(100)
                conn.sendall(json.dumps(report(first, second, udp)).encode())


def ask(what):
    with socket.socket(socket.AF_UNIX) as control:
        control.connect(CONTROL)
        control.sendall(what.encode())
        answer = b""
        while chunk := control.recv(65536):
            answer += chunk
        print(answer.decode())


if __name__ == "__main__":
    ask(sys.argv[2]) if sys.argv[1:2] == ["check"] else serve()

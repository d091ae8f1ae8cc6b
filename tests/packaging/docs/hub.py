#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Prints the pods that KubeSpawner makes for a user's server that is started, stopped, and started again after a restart of
the hub, in which the hub has a new token for it: hub.py CONFIG. No cluster is asked."""

import asyncio
import json
import sys
from types import SimpleNamespace

import kubespawner.spawner
from kubernetes_asyncio.client import ApiClient
from kubespawner import KubeSpawner
from traitlets.config import PyFileConfigLoader

HUB = SimpleNamespace(public_host="", api_url="http://hub:8081/hub/api", base_url="/hub/", server=SimpleNamespace(base_url="/"))


class User(SimpleNamespace):
    name = "alice"
    escaped_name = "alice"
    id = 1
    url = "/user/alice/"
    server = SimpleNamespace(base_url="/user/alice/", port=8888)

    def __hash__(self):
        return self.id


async def pods(config):
    state = {}
    for token in ["the first token", "another token"]:
        spawner = config.JupyterHub.spawner_class(hub=HUB, user=User(), config=config)
        assert spawner.will_resume
        spawner.load_state(state)
        # As the hub does it.
        spawner.clear_state()
        spawner.api_token = token
        yield await spawner.start()
        spawner.clear_state()
        state = json.loads(json.dumps(spawner.get_state()))


async def main():
    # There is no cluster to connect to, and `start` would ask it for this pod.
    kubespawner.spawner.load_config = kubespawner.spawner.shared_client = lambda *_, **__: None
    KubeSpawner.start = KubeSpawner.get_pod_manifest
    config = PyFileConfigLoader(sys.argv[1]).load_config()
    async with ApiClient() as client:
        print(json.dumps([client.sanitize_for_serialization(pod) async for pod in pods(config)]))


asyncio.run(main())

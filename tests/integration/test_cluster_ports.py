"""No fixed port is ours: a local cluster starts where others hold the ports that Ray and MLflow are known for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.ray

# GCS, dashboard, agent of the dashboard, Ray clients, metrics, MLflow's pages
KNOWN = (6379, 8265, 52365, 10001, 8080, 5000)

START = """
from sensorlab.cluster.start import connect, disconnect
import ray
print(connect(num_cpus=1, dashboard=True).address)
print(ray.get(ray.remote(num_cpus=0)(lambda: "works").remote()))
disconnect()
"""


def test_a_local_cluster_starts_beside_programs_that_hold_the_known_ports():
    held = []
    try:
        for port in KNOWN:
            holder = socket.socket()
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holder.bind(("0.0.0.0", port))
                holder.listen()
            except OSError:  # somebody holds it already
                holder.close()
            else:
                held.append(holder)
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        done = subprocess.run(
            [sys.executable, "-c", START], env=environment, capture_output=True, text=True, timeout=200, check=False
        )
    finally:
        for holder in held:
            holder.close()
    assert done.returncode == 0, done.stderr[-3000:]
    address, answer = done.stdout.splitlines()
    assert answer == "works"
    assert int(address.rpartition(":")[2]) not in KNOWN

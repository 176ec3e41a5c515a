"""A real Redis of our own, on a free port of the loopback."""

import shutil
import socket
import subprocess
import time

import pytest
import redis

BINARY = shutil.which("redis-server")
needs_redis = pytest.mark.skipif(BINARY is None, reason="redis-server is not on PATH")


class RedisServer:
    """Keeps nothing when killed, unless given `--appendonly yes`."""

    def __init__(self, folder, *options):
        with socket.socket() as free, socket.socket() as other:
            free.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
            cluster_port = other.getsockname()[1]
        self.uri = f"redis://127.0.0.1:{self.port}/0"
        self._command = [BINARY, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "",
                         "--appendfsync", "always", "--cluster-port", str(cluster_port), *options]  # fmt: skip
        self.password = options[options.index("--requirepass") + 1] if "--requirepass" in options else None
        self.start()

    def start(self):
        self.process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.client = redis.Redis(port=self.port, password=self.password, decode_responses=True)
        until = time.monotonic() + 20
        while True:
            try:
                self.client.ping()
            except (redis.ConnectionError, redis.BusyLoadingError):
                assert time.monotonic() < until, "redis-server does not answer"
                time.sleep(0.005)
            else:
                return

    def kill(self):
        self.client.close()
        self.process.kill()
        self.process.wait()

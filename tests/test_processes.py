"""Two processes with four devices each, over loopback: the same call, and what a death does."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.worker import HEARTBEAT

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def workers(tmp_path):
    """Start two processes; whatever happens none is left behind."""
    started = []

    def start(what: str) -> list[subprocess.Popen]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        environment = {
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": str(ROOT),
        }
        for number in range(2):
            command = [sys.executable, "-m", "tests.worker", str(port), "2", str(number), what]
            with open(tmp_path / f"{number}.log", "w") as out:
                process = subprocess.Popen(
                    command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
                )
            started.append(process)
        return started

    yield start
    for process in started:
        process.kill()
        process.wait()


def log(folder: Path, number: int) -> str:
    return (folder / f"{number}.log").read_text()


def test_triplets_and_gradient_over_two_processes(workers, tmp_path):
    for number, process in enumerate(workers("check")):
        assert process.wait(timeout=300) == 0, log(tmp_path, number)
        assert "all checked" in log(tmp_path, number)


@pytest.mark.parametrize("victim", [0, 1], ids=["coordinator", "other"])
def test_when_a_process_dies_the_other_fails_in_time(victim, workers, tmp_path):
    processes = workers("endless")
    until = time.monotonic() + 300
    while any("running" not in log(tmp_path, number) for number in range(2)):
        assert time.monotonic() < until, log(tmp_path, 0) + log(tmp_path, 1)
        assert all(process.poll() is None for process in processes), log(tmp_path, 0)
        time.sleep(0.1)
    processes[victim].send_signal(signal.SIGKILL)
    # The time to notice, and the time to leave.
    code = processes[1 - victim].wait(timeout=2 * HEARTBEAT + 10)
    assert code != 0

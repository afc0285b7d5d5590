"""A server that is kept under load while its versions change and clients misbehave."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.benchmarks.peers.workers.http_bodies import MODEL
from experiments.benchmarks.serving import servers
from experiments.campaigns.served_versions import Versions
from experiments.campaigns.soak_clients import Clients
from experiments.campaigns.soak_requests import good_requests, http_post
from experiments.campaigns.tally import Tally

SWAPPED, DAMAGED, MEMORY, LOG = "new versions", "damaged versions", "memory", "log and exit code"
_TIMEOUT = 10.0
_REQUESTS = 300
_MIB = 2**20
_WARM_UP = 0.25  # of the time
_WARM_UP_SWAPS = 10  # after eight, the allocator keeps what the next one needs
_GROWTH, _SLACK = 0.05, 8 * _MIB


class Soak:
    """A server and its clients.

    Args:
        tally: tally of tries.
        artifacts: artifacts that the versions are.
        scratch: directory for the versions.
        count: number of malformed bodies.
        load: share of the peak.
        swap_seconds: seconds between two versions.
    """

    def __init__(
        self,
        tally: Tally,
        artifacts: Sequence[Path],
        scratch: Path,
        count: int,
        load: float,
        swap_seconds: float,
    ):
        self._tally, self._count, self._load = tally, count, load
        self._swap_seconds = swap_seconds
        self._versions = Versions(scratch / "versions", artifacts)
        self._requests = good_requests(artifacts, _REQUESTS, tally.seed)
        self.notes: list[str] = []

    def run(self, seconds: float) -> None:
        """Serves for some seconds."""
        server = servers.ours(self._versions.directory, f"--timeout={_TIMEOUT:g}")
        with server:
            clients = Clients(
                server.port,
                self._requests,
                self._versions.artifact_of,
                self._counted,
                self._tally.seed,
                _TIMEOUT,
            )
            try:
                clients.loop.run_until_complete(self._run(server, clients, seconds))
            finally:
                clients.close()
        log = server.log()
        self._tally.count(LOG, ["no clean end"] if "all requests are answered" not in log else [])
        self._tally.count(LOG, [f"a traceback: {log[-2000:]}"] if "Traceback" in log else [])

    def _counted(self, case: str, lost: str) -> None:
        self._tally.count(case, [lost] if lost else [])

    async def _run(self, server: servers.Server, clients: Clients, seconds: float) -> None:
        peak = await clients.peak(min(5.0, seconds / 4))
        clients.seconds.clear()
        ended = asyncio.Event()
        begun = time.monotonic()
        tasks = [
            clients.loop.create_task(x)
            for x in (
                clients.steady(self._load * peak, ended),
                clients.malformed(seconds, self._count, ended),
                clients.disconnected(ended),
                clients.stalled(ended),
                self._swaps(server, ended, begun + _WARM_UP * seconds),
            )
        ]
        await asyncio.sleep(_WARM_UP * seconds)
        before = servers.memory(server.pid, self._versions.directory)
        await asyncio.sleep(max(0.0, begun + seconds - time.monotonic()))
        if not server.is_running():
            self._counted(LOG, f"the server has ended: {server.log()[-2000:]}")
        else:
            after = servers.memory(server.pid, self._versions.directory)
            self._compare(before["anonymous"], after["anonymous"])
        ended.set()
        await asyncio.gather(*tasks)
        p50, p99 = 1e3 * np.quantile(clients.seconds, [0.5, 0.99])
        self.notes.append(
            f"peak {peak:.0f} requests a second, load {len(clients.seconds) / seconds:.0f}; "
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms"
        )

    def _compare(self, before: int, after: int) -> None:
        text = f"{before / _MIB:.0f} MiB after warm-up, {after / _MIB:.0f} MiB at the end"
        self.notes.append(f"memory: {text}")
        grown = after > (1 + _GROWTH) * before + _SLACK
        self._counted(MEMORY, text if grown else "")

    async def _swaps(self, server: servers.Server, ended: asyncio.Event, warm: float) -> None:
        """New versions from time to time, and each time a damaged one before."""
        often = (warm - time.monotonic()) / _WARM_UP_SWAPS
        while not ended.is_set():
            is_warm = time.monotonic() >= warm
            await _wait(ended, self._swap_seconds if is_warm else min(often, self._swap_seconds))
            if ended.is_set():
                return
            damaged = self._versions.add(damaged=True)
            status, found = await _load(server.port)
            good = status == 400 and "versions" not in found
            self._counted(DAMAGED, "" if good else f"version {damaged}: {status}, {found}")
            self._versions.remove(damaged)
            number = self._versions.add()
            status, found = await _load(server.port)
            good = status == 200 and found["versions"] == [f"{number}"]
            self._counted(SWAPPED, "" if good else f"version {number}: {status}, {found}")
            if good:
                self._versions.remove(self._versions.newest)
                self._versions.newest = number


async def _wait(ended: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(ended.wait(), seconds)
    except TimeoutError:
        return


async def _load(port: int) -> tuple[int, dict]:
    """Asks a server to look for new versions."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(http_post(f"/v2/repository/models/{MODEL}/load", b"{}", "Connection: close"))
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    try:
        return int(head.split()[1]), json.loads(body)
    except (IndexError, ValueError):  # it is counted as lost
        return 0, {"answer": answer[:1000].decode(errors="replace")}

"""The counter at which workers reach the bank of limits (``auth/bank.py``), in the parent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from fabric_server.auth.bank import Bank, Reply
from fabric_server.workers.messages import MAX_LINES, Granted, Needs
from fabric_server.workers.process import Worker


class Counter:
    """Passes messages between the workers and the bank, and tells the bank the time."""

    def __init__(self, workers: Sequence[Worker], count: int) -> None:
        self._workers = workers
        self._bank = Bank(count)
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def on_needs(self, worker: Worker, needs: Needs) -> None:
        """Answer a worker, perhaps after others have given back."""
        self._send(self._bank.handle_needs(worker.name, needs.needs, self._loop.time()))

    def on_ended(self, worker: Worker) -> None:
        """Take back what a worker has that has ended."""
        self._send(self._bank.forget(worker.name, self._loop.time()))

    def close(self) -> None:
        """Answer nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _send(self, replies: Sequence[Reply]) -> None:
        workers = {worker.name: worker for worker in self._workers}
        for holder, grants, recalls in replies:
            for at in range(0, max(len(grants), len(recalls)), MAX_LINES):
                end = at + MAX_LINES
                workers[holder].send(Granted(grants[at:end], recalls[at:end]))
        self.close()
        deadline = self._bank.deadline
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._send(self._bank.handle_timer(self._loop.time()))

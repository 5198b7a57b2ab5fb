"""The engines' slots: which requests hold them, counted by registration.

A node that changes from a server to its successor is registered with both for a while, and the
requests of a lost registration run on beside the next one.  Each server knows of its own requests
only, so that each gets reports of the slots that others hold; requests that it sends before it
gets one wait here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec

from fabric_client.engines.discovery import Engine
from protocol.messages import EngineReport


class Slot:
    """One request's claim to one of an engine's slots, made by ``SlotTable.claim``."""

    __slots__ = ("engine", "held", "registration")

    def __init__(self, engine: Engine, registration: RegistrationSlots) -> None:
        self.engine = engine
        self.registration = registration
        self.held = False
        """True from the request's start to its end; False while it waits."""


class SlotTable:
    """The slots of all engines of a node.  Does no I/O; calls back from within its own calls."""

    def __init__(self) -> None:
        self._registrations: list[RegistrationSlots] = []
        self._queue: dict[Slot, Callable[[], None]] = {}
        """Claims to slots that another registration's requests hold; values start the request."""

    def register(self, on_change: Callable[[], None]) -> RegistrationSlots:
        """Add a registration; ``on_change`` is called when ``elsewhere`` may have changed."""
        registration = RegistrationSlots(self, on_change)
        self._registrations.append(registration)
        return registration

    def claim(self, engine: Engine, registration: RegistrationSlots) -> Slot | None:
        """Return a claim to one of the engine's slots, or None if its server sends too much.

        It is ``held`` if a slot is free; otherwise ``wait`` for one.  A server may have as many
        requests here, running or waiting, as the engine has slots.
        """
        slot, slots = Slot(engine, registration), engine.slots or 1
        if engine.active < slots:
            self._grant(slot)
            return slot
        waiting = sum(
            one.engine is engine and one.registration is registration for one in self._queue
        )
        return slot if registration.held[engine] + waiting < slots else None

    def wait(self, slot: Slot, start: Callable[[], None]) -> None:
        """Call ``start`` when the slot is held."""
        self._queue[slot] = start

    def release(self, slot: Slot) -> None:
        """Give a slot back, or leave the queue."""
        if slot.held:
            engine = slot.engine
            slot.held = False
            engine.active -= 1
            slot.registration.held[engine] -= 1
            if self._queue:
                self._grant_next(engine)
        else:
            self._queue.pop(slot, None)
        if len(self._registrations) > 1:
            self.drop_closed()
            self._notify()

    def held_by_others(self, registration: RegistrationSlots) -> dict[str, int]:
        engines = {engine for one in self._registrations for engine in one.held}
        return {
            engine.name: others
            for engine in engines
            if (others := engine.active - registration.held[engine]) > 0
        }

    def drop_closed(self) -> None:
        """Forget closed registrations whose last request has ended."""
        self._registrations = [one for one in self._registrations if one.open or one.held.total()]

    def _grant(self, slot: Slot) -> None:
        engine = slot.engine
        slot.held = True
        engine.active += 1
        slot.registration.held[engine] += 1
        if len(self._registrations) > 1:
            self._notify()

    def _grant_next(self, engine: Engine) -> None:
        for slot, start in self._queue.items():
            if slot.engine is engine and engine.active < (engine.slots or 1):
                del self._queue[slot]
                self._grant(slot)
                start()
                return

    def _notify(self) -> None:
        for registration in self._registrations:
            if registration.open:
                registration.on_change()


class RegistrationSlots:
    """The slots that one registration's requests hold.

    Made by ``SlotTable.register``; ``close`` it when the registration ends.
    """

    def __init__(self, table: SlotTable, on_change: Callable[[], None]) -> None:
        self.on_change = on_change
        self.open = True
        self.held: Counter[Engine] = Counter()
        self._table = table

    def elsewhere(self) -> dict[str, int]:
        """Return the slots that other registrations' requests hold, by engine, without zeros."""
        return self._table.held_by_others(self)

    def adjust(self, reports: Sequence[EngineReport]) -> list[EngineReport]:
        """Return the reports with ``elsewhere`` as this registration's server must know it."""
        elsewhere = self.elsewhere()
        if not elsewhere:
            return list(reports)
        return [
            msgspec.structs.replace(report, elsewhere=elsewhere.get(report.name, 0))
            for report in reports
        ]

    def close(self) -> None:
        """Stop the notifications; running requests keep their slots until they end."""
        self.open = False
        self._table.drop_closed()

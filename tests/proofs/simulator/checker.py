"""Who holds what, and a counter that nothing but the leases protects.

A hold begins when an acquire has returned and ends when the process that relies on it is gone; one that is
paused is not gone. Two holds of a resource may overlap only if both are shared. Every exclusive holder reads
the resource's register when it begins and writes it, one larger, when it ends in peace: a lost update shows
an overlap that the intervals missed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tests.proofs.simulator.clockwork import Clockwork
    from tests.proofs.simulator.machine import Machine


class Hold:
    """A process relies on a lease."""

    __slots__ = ("lver", "machine", "register", "shared", "since")

    def __init__(self, machine: Machine, *, shared: bool, lver: int, since: float, register: int) -> None:
        self.machine = machine
        self.shared = shared
        self.lver = lver
        self.since = since
        self.register = register

    def __str__(self) -> str:
        mode = "shared" if self.shared else "exclusive"
        return f"{self.machine.label} generation {self.machine.generation} ({mode}, lver {self.lver})"


class Violation(NamedTuple):
    """What must not happen, and when (seconds of the world)."""

    time: float
    text: str


class Register:
    """The unprotected counter on one disk, and who relies on its lease."""

    def __init__(self) -> None:
        self.value = 0
        self.writes = 0
        self.holds: list[Hold] = []


class Checker:
    """Listens to what processes do under their leases."""

    def __init__(self, clockwork: Clockwork, resources: int) -> None:
        self._clockwork = clockwork
        self.registers = [Register() for _ in range(resources)]
        self.acquisitions = 0
        self.violations: list[Violation] = []

    def begin(self, machine: Machine, resource: int, *, shared: bool, lver: int) -> Hold:
        self.acquisitions += 1
        register = self.registers[resource]
        now = self._clockwork.now
        hold = Hold(machine, shared=shared, lver=lver, since=now, register=register.value)
        for other in register.holds:
            if not (shared and other.shared):
                self._overlap(resource, other, hold)
        register.holds.append(hold)
        self._clockwork.note(
            machine, f"HOLDS resource {resource} {'shared' if shared else 'exclusive'} {lver}"
        )
        return hold

    def end(self, resource: int, hold: Hold, *, in_peace: bool) -> None:
        """Its process is gone; ``in_peace``: it ended by itself, its last write done."""
        register = self.registers[resource]
        register.holds.remove(hold)
        self._clockwork.note(hold.machine, f"drops resource {resource} {'' if in_peace else '(killed)'}")
        if in_peace and not hold.shared:
            self._write(resource, register, hold)

    def weaken(self, resource: int, hold: Hold) -> None:
        """An exclusive holder has done its last write, and goes on as a shared one."""
        register = self.registers[resource]
        self._write(resource, register, hold)
        hold.shared = True
        self._clockwork.note(hold.machine, f"resource {resource} is held shared from here")

    def strengthen(self, resource: int, hold: Hold, *, lver: int) -> None:
        """A shared holder begins to write."""
        register = self.registers[resource]
        self.acquisitions += 1
        hold.shared, hold.lver, hold.register = False, lver, register.value
        self._clockwork.note(hold.machine, f"HOLDS resource {resource} exclusive {lver}, converted")
        for other in register.holds:
            if other is not hold:
                self._overlap(resource, other, hold)

    def _write(self, resource: int, register: Register, hold: Hold) -> None:
        if register.value != hold.register:
            self.violate(
                f"resource {resource}: lost update by {hold}: "
                f"read {hold.register}, found {register.value} before its write"
            )
        register.value = hold.register + 1
        register.writes += 1

    def finish(self) -> None:
        """What must hold at the end: no update was lost, no overlap was missed by both."""
        for resource, register in enumerate(self.registers):
            if register.value != register.writes:
                self.violate(f"resource {resource}: {register.writes} updates, counter {register.value}")

    def _overlap(self, resource: int, first: Hold, second: Hold) -> None:
        age = self._clockwork.now - first.since
        self.violate(f"resource {resource}: {second} beside {first}, who holds it for {age:.3f} s")

    def violate(self, text: str) -> None:
        clockwork = self._clockwork
        clockwork.note(None, f"VIOLATION {text}")
        self.violations.append(Violation(clockwork.now + clockwork.skipped, text))
        clockwork.stopped = True

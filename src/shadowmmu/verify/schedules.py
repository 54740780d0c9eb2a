"""All schedules of a few CPUs over shared words: every order in which their atomic steps can fall.

A CPU is a generator. It yields one atomic step, is sent what the step returned, and goes on; what it does
to the words between two yields (words that only it can reach yet) counts as part of the step before. The
search is exact: two ways to one state are told by the words and by what each CPU was sent so far, which
decides what it does next.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Final, NamedTuple

Words = dict[int, int]
State = tuple[frozenset[tuple[int, int]], tuple[tuple[int, ...], ...]]
"""The words, and what each CPU was sent."""


class Read(NamedTuple):
    """Read a word; of it, what the CPU makes use of."""

    at: int
    mask: int = -1


class Swap(NamedTuple):
    """Compare and swap: ``new`` if the word is ``old``; returns what it was."""

    at: int
    old: int
    new: int


class Add(NamedTuple):
    """Add to a word; returns nothing.

    Unless other kinds of step look at the word (``seen``) it makes no difference when: it happens at once.
    """

    at: int
    amount: int
    seen: bool = False


class Store(NamedTuple):
    """Write a word, whatever it is."""

    at: int
    new: int


class Wait(NamedTuple):
    """Wait until a word is no longer ``value``; returns what it is then."""

    at: int
    value: int


Step = Read | Swap | Add | Store | Wait
Cpu = Generator[Step, int, None]
Start = Callable[[], tuple[Words, list[Cpu]]]
"""Fresh words and CPUs: the same ones each time it is called."""
END: Final = None


class Broken(Exception):
    """What a CPU found itself doing that it must never do."""


class Explored(NamedTuple):
    """What all schedules came to."""

    states: int
    """Different states met."""
    ends: int
    """Different states in which all CPUs had come to their end."""
    broken: str
    """What the check, or a CPU, said of the first schedule that goes wrong; or that nobody can go on."""
    schedule: tuple[int, ...]
    """Whose steps lead there."""


def take_step(words: Words, step: Step) -> int:
    """Carry out one step; what it returns."""
    before = words.get(step.at, 0)
    if isinstance(step, Add):
        words[step.at] = before + step.amount
        return 0
    if isinstance(step, Read):
        return before & step.mask
    if isinstance(step, Store) or (isinstance(step, Swap) and before == step.old):
        words[step.at] = step.new
    return before


def run_alone(words: Words, cpu: Cpu) -> None:
    """Run one CPU to its end, with nobody else there."""
    step = next(cpu, END)
    while step is not END:
        try:
            step = cpu.send(take_step(words, step))
        except StopIteration:
            return


class _Run:
    """One schedule under way."""

    def __init__(self, start: Start, schedule: tuple[int, ...]) -> None:
        self.words, self.cpus = start()
        self.sent: list[tuple[int, ...]] = [() for _ in self.cpus]
        self.next: list[Step | None] = [END for _ in self.cpus]
        for cpu in range(len(self.cpus)):
            self._send(cpu, None)
        self.schedule: tuple[int, ...] = ()
        for cpu in schedule:
            self.go(cpu)

    def able(self) -> list[int]:
        """CPUs that can take their next step."""
        return [
            cpu
            for cpu, step in enumerate(self.next)
            if step is not END and not (isinstance(step, Wait) and self.words.get(step.at, 0) == step.value)
        ]

    def go(self, cpu: int) -> None:
        """One step of ``cpu``."""
        step = self.next[cpu]
        assert step is not END
        before = take_step(self.words, step)
        self.schedule += (cpu,)
        self.sent[cpu] += (before,)
        self._send(cpu, before)

    def _send(self, cpu: int, sent: int | None) -> None:
        """Let a CPU go on to the next step that others can tell from not having happened."""
        try:
            step = next(self.cpus[cpu]) if sent is None else self.cpus[cpu].send(sent)
            while isinstance(step, Add) and not step.seen:
                step = self.cpus[cpu].send(take_step(self.words, step))
        except StopIteration:
            self.next[cpu] = END
        else:
            self.next[cpu] = step

    def key(self) -> State:
        """What tells this state from others."""
        return frozenset(self.words.items()), tuple(self.sent)


def explore(start: Start, check: Callable[[Words], str]) -> Explored:
    """Every schedule, to its end; ``check`` says what is wrong with the words then, or nothing.

    Stops at the first that is wrong. Time: states times the steps of a schedule.
    """
    seen: set[State] = set()
    ends = 0
    waiting: list[tuple[int, ...]] = [()]
    while waiting:
        schedule = waiting.pop()
        try:
            run = _Run(start, schedule)
        except Broken as error:
            return Explored(len(seen), ends, str(error), schedule)
        while (key := run.key()) not in seen:
            seen.add(key)
            able = run.able()
            if not able:
                ends += 1
                stuck = [cpu for cpu, step in enumerate(run.next) if step is not END]
                broken = f"CPU {stuck[0]} waits for ever" if stuck else check(run.words)
                if broken:
                    return Explored(len(seen), ends, broken, run.schedule)
                break
            waiting.extend((*run.schedule, cpu) for cpu in able[1:])
            try:
                run.go(able[0])
            except Broken as error:
                return Explored(len(seen), ends, str(error), run.schedule)
    return Explored(len(seen), ends, "", ())

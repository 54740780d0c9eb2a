"""The named workloads: one declaration each, and reading ``NAME:key=value,...``.

Each is a generator of this room with its parameters, their defaults, and where its shape comes from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from shadowmmu.errors import InputError
from shadowmmu.events.host_passes import balloon, ksm, numa_balancing, thp_collapse
from shadowmmu.events.host_rounds import live_migration, memslot_churn
from shadowmmu.events.l2_boot import FIRST_TOUCHES, l2_boot
from shadowmmu.events.population import Sizes
from shadowmmu.events.schema import Scenario
from shadowmmu.events.storm import Rounds, storm
from shadowmmu.machine.granule import DEFAULT_GRANULE

Value: TypeAlias = int | float | str
Build: TypeAlias = Callable[..., Scenario]

MOST_COUNT: Final = (1 << 63) - 1
"""What a column of results holds."""
SUFFIXES: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
LEAVES_OF: Final = {"4K": ("4K", "2M"), "16K": ("16K", "32M"), "64K": ("64K", "512M")}
"""Page and block of a granule, by the name of each."""


@dataclass(frozen=True)
class Parameter:
    """One knob of a workload; its default says of what type it is."""

    name: str
    default: Value
    meaning: str

    def read(self, text: str) -> Value:
        """The value written as ``text``. Raises InputError."""
        try:
            if isinstance(self.default, str):
                return text
            return _number(text) if isinstance(self.default, float) else _count(text)
        except ValueError:
            count = "a count such as 1000, 1e6 or 4K, below 2^63"
            kind = "a finite number" if isinstance(self.default, float) else count
            raise InputError(f"read {self.name}={text}, expected {kind}") from None


@dataclass(frozen=True)
class Workload:
    """One named workload. ``build`` takes every parameter by name, and ``seed`` and ``granule``."""

    name: str
    idea: str
    source: str
    parameters: tuple[Parameter, ...]
    build: Build

    def parameter(self, name: str) -> Parameter:
        """The parameter called so. Raises InputError."""
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        known = ", ".join(parameter.name for parameter in self.parameters)
        raise InputError(f"read '{name}' of workload {self.name}, expected one of {known}")

    def scenario(self, values: Mapping[str, Value], seed: int, granule: str = DEFAULT_GRANULE) -> Scenario:
        """The events: the values given, the defaults of the others; ``granule``: the host's. InputError."""
        for name in values:
            self.parameter(name)
        everything = {p.name: values.get(p.name, p.default) for p in self.parameters}
        try:
            return self.build(**everything, seed=seed, granule=granule)
        except ValueError as error:
            raise InputError(f"workload {self.name}: {error}") from None


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    unit = SUFFIXES.get(text[-1:].upper(), 1)
    digits = text[:-1] if unit > 1 else text
    if digits.lower().startswith("0x"):
        value: float = int(text, 16)
    else:
        value = float(digits) if "e" in digits.lower() or "." in digits else int(digits)
    if not -MOST_COUNT <= value * unit <= MOST_COUNT or value != int(value):
        raise ValueError(text)
    return int(value) * unit


def _storm(
    *,
    mmus: int,
    leaves: int,
    leaf: str,
    cluster: float,
    alias: float,
    notifiers: int,
    size: int,
    burst: int,
    used: int,
    refault: float,
    writes: float,
    moves: int,
    recycles: int,
    shared: int,
    target: str,
    seed: int,
    granule: str,
) -> Scenario:
    """``storm`` with parameters that fit a command line."""
    rounds = Rounds(moves=moves, recycles=recycles, writes=writes, target=target, burst=burst, used=used)
    return storm(
        mmus=mmus,
        leaves=leaves,
        leaf_sizes=_leaf_sizes(leaf, granule),
        cluster=cluster,
        alias_rate=alias,
        notifiers=notifiers,
        notifier_bytes=size or None,
        refault=refault,
        seed=seed,
        shared=bool(shared),
        rounds=rounds,
        granule=granule,
    )


def _live_migration(
    *,
    mmus: int,
    leaves: int,
    cluster: float,
    rounds: int,
    active: float,
    writes: float,
    leaf: str,
    used: int,
    log: str,
    split: int,
    converge: int,
    seed: int,
    granule: str,
) -> Scenario:
    """``live_migration`` with parameters that fit a command line."""
    return live_migration(
        mmus=mmus,
        leaves=leaves,
        cluster=cluster,
        rounds=rounds,
        active=active,
        writes=writes,
        leaf_sizes=_leaf_sizes(leaf, granule),
        used=used,
        log=log,
        split=split,
        converge=bool(converge),
        seed=seed,
        granule=granule,
    )


def _leaf_sizes(leaf: str, granule: str) -> Mapping[int, float]:
    """Weights of the leaf sizes of a granule, by a name of ``LEAVES_OF``. Raises ValueError."""
    sizes = Sizes.of(granule)
    page, block = LEAVES_OF[granule]
    known = {name: {sizes.page: 1.0} for name in ("page", page)}
    known |= {name: {sizes.block: 1.0} for name in ("block", block)}
    known |= {"mixed": sizes.shares()}
    if leaf == "1G":
        raise ValueError("leaf is 1G, and the modelled host has no pages of 1G: a shadow leaf is at most 2M")
    if leaf not in known:
        raise ValueError(f"leaf is {leaf!r}, expected one of {', '.join(known)}")
    return known[leaf]


_MMUS = Parameter("mmus", 2, "shadow MMUs, one L2 each")
_LEAVES = Parameter("leaves", 100_000, "shadow leaves, over all MMUs")
_CLUSTER = Parameter("cluster", 64.0, "mean length of a run of consecutive leaves")
_ROUNDS = Parameter("rounds", 4, "passes, with the L2s running after each")
_ACTIVE = Parameter("active", 0.5, "fraction of the runs that L2 touches when it runs")
_WRITES = Parameter("writes", 0.5, "share of the touched runs that L2 writes; it reads the others")
_USUAL = (_MMUS, _LEAVES, _CLUSTER, _ROUNDS, _ACTIVE)

_LIST: Final = (
    Workload(
        "storm",
        "the host drops one range after another, and the L2s touch all they have after each",
        "no recording: the worst case that reverse maps are asked for",
        (
            Parameter("mmus", 4, "shadow MMUs, one L2 each"),
            Parameter("leaves", 100_000, "shadow leaves, over all MMUs"),
            Parameter("leaf", "mixed", "leaf size: page (4K), block (2M), or mixed (2 of 100 are blocks)"),
            _CLUSTER,
            Parameter("alias", 0.0, "chance that a run starts where another of its MMU starts"),
            Parameter("notifiers", 4, "notifiers"),
            Parameter("size", 0, "bytes of a notifier; 0: a page of the host"),
            Parameter("burst", 1, "notifiers before the L2s run again"),
            Parameter("refault", 1.0, "fraction of the runs touched again"),
            Parameter("used", 1, "pages of each block that L2 uses, a power of two, evenly spread"),
            Parameter("writes", 1.0, "share of these that are written; the others are read"),
            Parameter("moves", 0, "times L1 swaps two pages of an L2 before they run (two TLBIs each)"),
            Parameter("recycles", 0, "fresh L2s before they run; each takes a shadow MMU"),
            Parameter("shared", 0, "1: all MMUs map the same canonical memory"),
            Parameter("target", "mapped", "the page of a notifier: mapped, or unmapped by every L2"),
        ),
        _storm,
    ),
    Workload(
        "l2-boot",
        "a Linux L2 boots in a Linux L1 while the host's khugepaged collapses 2M after 2M",
        "shaped from the recorded boot data/traces/l2-boot-khugepaged",
        (Parameter("leaves", FIRST_TOUCHES, "pages that the boot touches"),),
        l2_boot,
    ),
    Workload(
        "numa-balancing",
        "scan windows lose their mappings with one notifier each; some pages then migrate one by one",
        "Linux 7.3.4 by reading: change_prot_numa, change_pud_range, try_to_migrate_one; window as "
        "sysctl numa_balancing_scan_size_mb",
        (
            *_USUAL,
            Parameter("window", 256 << 20, "bytes of a scan window"),
            Parameter("migrations", 8, "pages that migrate after each window"),
        ),
        numa_balancing,
    ),
    Workload(
        "ksm",
        "ksmd merges pages, two notifiers of a page each, and L2 writes some of them apart again",
        "Linux 7.3.4 by reading: write_protect_page, replace_page; seen as bursts of 4K notifiers in "
        "data/traces/l2-workload-ksm",
        (*_USUAL, Parameter("merged", 16, "pages merged before the L2s run"), _WRITES),
        ksm,
    ),
    Workload(
        "balloon",
        "balloons inflate, page by page, and deflate; some of the pages no L2 ever had",
        "virtio-balloon of QEMU by description: MADV_DONTNEED of a host page each",
        (
            *_USUAL,
            Parameter("share", 0.01, "share of the L2s' runs that the balloon takes"),
            Parameter("free", 16, "pages it takes that no L2 maps"),
        ),
        balloon,
    ),
    Workload(
        "live-migration",
        "dirty logging: write-protect, run, harvest, again",
        "Linux 7.3.4 as recorded in kernel_runs/scenario/12-dirtylog-slot; rounds as in pre-copy",
        (
            *_USUAL,
            _WRITES,
            Parameter("leaf", "page", "leaf size: page (4K), block (2M), or mixed (2 of 100 are blocks)"),
            Parameter("used", 1, "pages of each block that L2 uses, a power of two, evenly spread"),
            Parameter("log", "get", "how it is harvested: get, clear (manual, all dirty at first) or ring"),
            Parameter("split", 0, "bytes of a chunk of eager page splitting; 0: none"),
            Parameter("converge", 0, "1: a round lasts as long as sending what the one before dirtied"),
        ),
        _live_migration,
    ),
    Workload(
        "memslot-churn",
        "the memslot is deleted and made again: every leaf has to go under every design",
        "Linux 7.3.4 as recorded in kernel_runs/scenario/12-dirtylog-slot",
        _USUAL,
        memslot_churn,
    ),
    Workload(
        "thp-collapse",
        "khugepaged collapses base pages to huge ones, one notifier of a block (2M) each",
        "Linux 7.3.4 by reading: collapse_huge_page; seen in data/traces/l2-boot-khugepaged",
        (*_USUAL, Parameter("blocks", 1, "blocks (of 2M) collapsed before the L2s run")),
        thp_collapse,
    ),
)

WORKLOADS: Final[dict[str, Workload]] = {workload.name: workload for workload in _LIST}


def named_workload(name: str) -> Workload:
    """The workload called so. Raises InputError."""
    if name not in WORKLOADS:
        raise InputError(f"read workload '{name}', expected one of {', '.join(WORKLOADS)}")
    return WORKLOADS[name]


def read_workload(text: str) -> tuple[Workload, dict[str, Value]]:
    """``NAME`` or ``NAME:key=value,...``: the workload and the values given. Raises InputError."""
    name, _, rest = text.partition(":")
    workload = named_workload(name)
    values: dict[str, Value] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        if not equals:
            raise InputError(f"read '{item}' in '{text}', expected key=value")
        values[key.strip()] = workload.parameter(key.strip()).read(value.strip())
    return workload, values

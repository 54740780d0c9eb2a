"""What can be asked of a translation: the address translation instructions and the accesses.

Source: Arm ARM C5.4 (AT instructions), D8.1 (regimes). The numbers are part of the interface: batches
carry them, oracles execute them.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from shadowmmu.arch.fault import EXECUTE, READ, WRITE
from shadowmmu.arch.registers import HCR_EL2
from shadowmmu.compiled import U64, Word, inline

NAMES: Final = (
    "AT S1E1R",
    "AT S1E1W",
    "AT S1E0R",
    "AT S1E0W",
    "AT S12E1R",
    "AT S12E1W",
    "AT S12E0R",
    "AT S12E0W",
    "AT S1E1RP",
    "AT S1E1WP",
    "AT S1E2R",
    "AT S1E2W",
    "load at EL1",
    "store at EL1",
    "fetch at EL1",
    "load at EL0",
    "store at EL0",
    "fetch at EL0",
    "atomic at EL1",
    "atomic at EL0",
    "load at EL2",
    "store at EL2",
    "fetch at EL2",
    "AT S1E1A",
    "AT S1E2A",
)
"""Operations by number."""

AT_S1E1R: Final = NAMES.index("AT S1E1R")
AT_S1E1W: Final = NAMES.index("AT S1E1W")
AT_S1E0R: Final = NAMES.index("AT S1E0R")
AT_S1E0W: Final = NAMES.index("AT S1E0W")
AT_S12E1R: Final = NAMES.index("AT S12E1R")
AT_S12E0W: Final = NAMES.index("AT S12E0W")
AT_S1E1RP: Final = NAMES.index("AT S1E1RP")
AT_S1E1WP: Final = NAMES.index("AT S1E1WP")
AT_S1E2R: Final = NAMES.index("AT S1E2R")
AT_S1E2W: Final = NAMES.index("AT S1E2W")
LOAD_EL1: Final = NAMES.index("load at EL1")
FETCH_EL1: Final = NAMES.index("fetch at EL1")
LOAD_EL0: Final = NAMES.index("load at EL0")
FETCH_EL0: Final = NAMES.index("fetch at EL0")
ATOMIC_EL1: Final = NAMES.index("atomic at EL1")
ATOMIC_EL0: Final = NAMES.index("atomic at EL0")
LOAD_EL2: Final = NAMES.index("load at EL2")
FETCH_EL2: Final = NAMES.index("fetch at EL2")
AT_S1E1A: Final = NAMES.index("AT S1E1A")
AT_S1E2A: Final = NAMES.index("AT S1E2A")

EL10: Final = 0
"""The EL1&0 regime."""
EL20: Final = 1
"""The EL2&0 regime (HCR_EL2.E2H is 1)."""
EL2: Final = 2
"""The EL2 regime."""

HCR_E2H: Final = HCR_EL2.mask("E2H")
HCR_TGE: Final = HCR_EL2.mask("TGE")
ZERO: Final = U64(0)
HOST: Final = HCR_E2H | HCR_TGE


class Access(NamedTuple):
    """What an operation does: from where, how, through what.

    ``at``: an AT instruction, which changes no memory; ``checked``: permissions are looked at (not so
    for the A forms, FEAT_ATS1A); ``pan``: PSTATE.PAN counts.
    """

    regime: int
    el: int
    kind: int
    both_stages: bool
    at: bool
    pan: bool
    checked: bool


@inline
def regime_below(hcr: Word) -> int:
    """The regime that EL0 and the E1 and E0 forms of AT use, as HCR_EL2.{E2H, TGE} have it."""
    return EL20 if hcr & HOST == HOST else EL10


@inline
def regime_el2(hcr: Word) -> int:
    """The regime of EL2."""
    return EL2 if hcr & HCR_E2H == ZERO else EL20


@inline
def access_of(operation: int, hcr: Word) -> Access:
    """What ``operation`` means under HCR_EL2. An atomic is a load, then a store: here, the load."""
    if operation == ATOMIC_EL1 or operation == ATOMIC_EL0:
        operation = load_of(operation)
    if operation <= AT_S1E1WP:
        kind = WRITE if operation & 1 == 1 else READ
        forms = operation < AT_S1E1RP
        el = 0 if forms and operation & 2 == 2 else 1
        regime = regime_below(hcr)
        both = AT_S12E1R <= operation <= AT_S12E0W and regime == EL10
        if regime == EL20 and el == 1:
            el = 2
        return Access(regime, el, kind, both, True, not forms, True)
    if operation <= AT_S1E2W:
        kind = WRITE if operation == AT_S1E2W else READ
        return Access(regime_el2(hcr), 2, kind, False, True, False, True)
    if operation <= FETCH_EL1:
        return Access(EL10, 1, kind_of(operation - LOAD_EL1), True, False, True, True)
    if operation <= FETCH_EL0:
        regime = regime_below(hcr)
        return Access(regime, 0, kind_of(operation - LOAD_EL0), regime == EL10, False, False, True)
    if operation == AT_S1E1A:
        regime = regime_below(hcr)
        return Access(regime, 2 if regime == EL20 else 1, READ, False, True, False, False)
    if operation == AT_S1E2A:
        return Access(regime_el2(hcr), 2, READ, False, True, False, False)
    return Access(regime_el2(hcr), 2, kind_of(operation - LOAD_EL2), False, False, True, True)


@inline
def load_of(operation: int) -> int:
    """The load that an atomic begins with; the store's number follows it."""
    return LOAD_EL1 if operation == ATOMIC_EL1 else LOAD_EL0


@inline
def kind_of(position: int) -> int:
    """READ, WRITE, EXECUTE for the load, store, fetch of one exception level."""
    if position == 0:
        return READ
    return WRITE if position == 1 else EXECUTE

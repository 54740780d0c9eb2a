"""What stage 1 permits, against the manual's tables: direct, hierarchical, WXN, PAN, and by indirection."""

from __future__ import annotations

from itertools import product

import pytest
from translation_lab import ALL, OPERATIONS, PAGE1, VA, Machine, el10, rights

DIRECT = {  # AP[2:1], UXN, PXN: privileged level and EL0, without and with WXN
    (0, 0, 0): ("rwx --x", "rw- --x"),
    (0, 0, 1): ("rw- --x", "rw- --x"),
    (0, 1, 0): ("rwx ---", "rw- ---"),
    (0, 1, 1): ("rw- ---", "rw- ---"),
    (1, 0, 0): ("rw- rwx", "rw- rw-"),
    (1, 0, 1): ("rw- rwx", "rw- rw-"),
    (1, 1, 0): ("rw- rw-", "rw- rw-"),
    (1, 1, 1): ("rw- rw-", "rw- rw-"),
    (2, 0, 0): ("r-x --x", "r-x --x"),
    (2, 0, 1): ("r-- --x", "r-- --x"),
    (2, 1, 0): ("r-x ---", "r-x ---"),
    (2, 1, 1): ("r-- ---", "r-- ---"),
    (3, 0, 0): ("r-x r-x", "r-x r-x"),
    (3, 0, 1): ("r-- r-x", "r-- r-x"),
    (3, 1, 0): ("r-x r--", "r-x r--"),
    (3, 1, 1): ("r-- r--", "r-- r--"),
}
"""Arm ARM D8.4.1, the tables of data access permissions and of instruction execution for two ranges."""
ONE_RANGE = {  # AP[2], XN: EL2 alone, without and with WXN
    (0, 0): ("rwx", "rw-"),
    (0, 1): ("rw-", "rw-"),
    (1, 0): ("r-x", "r-x"),
    (1, 1): ("r--", "r--"),
}
"""The same for a regime with one range."""
WXN, EPAN = 1 << 19, 1 << 57
E2H_TGE = 1 << 34 | 1 << 27
OF_EL2 = tuple(f"{what} at EL2" for what in ("load", "store", "fetch"))
OF_HOST = OF_EL2 + OPERATIONS[3:]


def leaf(ap: int, uxn: int, pxn: int) -> int:
    return PAGE1 | ap << 6 | uxn << 54 | pxn << 53


def moved_to_el2(machine: Machine, hcr: int) -> Machine:
    """The same tables under the registers of EL2."""
    r = machine.registers
    tcr = 16 | 5 << 16 if hcr == 0 else r["TCR_EL1"]
    registers = {"TTBR0_EL2": r["TTBR0_EL1"], "TCR_EL2": tcr, "SCTLR_EL2": r["SCTLR_EL1"], "MAIR_EL2": 0xFF}
    machine.registers = registers | {"HCR_EL2": hcr}
    return machine


@pytest.mark.parametrize("wxn", [0, 1])
@pytest.mark.parametrize(("ap", "uxn", "pxn"), DIRECT)
def test_direct_permissions_of_two_ranges(ap: int, uxn: int, pxn: int, wxn: int) -> None:
    machine = el10(leaf(ap, uxn, pxn), SCTLR_EL1=5 | wxn * WXN)
    assert rights(machine) == DIRECT[ap, uxn, pxn][wxn]
    assert rights(moved_to_el2(machine, E2H_TGE), VA, OF_HOST) == DIRECT[ap, uxn, pxn][wxn]


@pytest.mark.parametrize("wxn", [0, 1])
@pytest.mark.parametrize(("ap2", "xn"), ONE_RANGE)
@pytest.mark.parametrize("ignored", [0, 1 << 6, 1 << 53, 1 << 6 | 1 << 53])
def test_direct_permissions_of_el2_ignore_ap1_and_pxn(ap2: int, xn: int, wxn: int, ignored: int) -> None:
    machine = moved_to_el2(el10(leaf(2 * ap2, xn, 0) | ignored, SCTLR_EL1=5 | wxn * WXN), 0)
    assert rights(machine, VA, OF_EL2) == ONE_RANGE[ap2, xn][wxn] + " "


def under_tables(ap: int, uxn: int, pxn: int, bits: int) -> str:
    """The rights after APTable, UXNTable and PXNTable have had their say."""
    no_el0, read_only, pxn_table, uxn_table = (bits >> n & 1 for n in range(4))
    effective = (ap | 2 * read_only) & ~no_el0
    return DIRECT[effective, uxn | uxn_table, pxn | pxn_table][0]


@pytest.mark.parametrize("bits", range(16))
def test_hierarchical_permissions(bits: int) -> None:
    no_el0, read_only, pxn, uxn = (bits >> n & 1 for n in range(4))
    tables = no_el0 << 61 | read_only << 62 | pxn << 59 | uxn << 60
    for fields in DIRECT:
        machine = el10(leaf(*fields), bits=tables)
        assert rights(machine) == under_tables(*fields, bits)
        machine.registers["TCR_EL1"] |= 1 << 41
        assert rights(machine) == DIRECT[fields][0]  # HPD0: as if the tables said nothing
        machine.features = ALL - {"HPDS"}
        assert rights(machine) == under_tables(*fields, bits)


@pytest.mark.parametrize("level", range(3))
@pytest.mark.parametrize(
    ("bit", "expected"), [(59, "rw- rwx"), (60, "rw- rw-"), (61, "rwx --x"), (62, "r-x r-x")]
)
def test_a_table_bit_counts_at_every_level(level: int, bit: int, expected: str) -> None:
    machine = el10(leaf(1, 0, 0))
    descriptors = sorted(at for at in machine.words if machine.words[at] & ~0xFFF_FFFF_FFFF == 0)
    assert len(descriptors) == 4
    machine.words[descriptors[level]] |= 1 << bit
    assert rights(machine) == expected


@pytest.mark.parametrize("bits", range(16))
def test_hierarchical_permissions_of_el2(bits: int) -> None:
    no_el0, read_only, pxn, uxn = (bits >> n & 1 for n in range(4))
    tables = no_el0 << 61 | read_only << 62 | pxn << 59 | uxn << 60
    for ap2, xn in ONE_RANGE:
        machine = moved_to_el2(el10(leaf(2 * ap2, xn, 0), bits=tables), 0)
        assert rights(machine, VA, OF_EL2) == ONE_RANGE[ap2 | read_only, xn | uxn][0] + " "
        machine.registers["TCR_EL2"] |= 1 << 24  # HPD
        assert rights(machine, VA, OF_EL2) == ONE_RANGE[ap2, xn][0] + " "


@pytest.mark.parametrize(("ap", "uxn", "pxn"), DIRECT)
def test_dirty_state_managed_by_hardware_makes_a_dbm_page_writable(ap: int, uxn: int, pxn: int) -> None:
    managed = el10(leaf(ap, uxn, pxn) | 1 << 51)
    managed.registers["TCR_EL1"] |= 1 << 39 | 1 << 40
    assert rights(managed) == DIRECT[ap & 1, uxn, pxn][0]
    for bit, feature in ((39, "HAF"), (40, "HDBS")):
        without = el10(leaf(ap, uxn, pxn) | 1 << 51)
        without.registers["TCR_EL1"] |= 1 << bit
        assert rights(without) == DIRECT[ap, uxn, pxn][0]
        managed.features = ALL - {feature}
        assert rights(managed) == DIRECT[ap, uxn, pxn][0]


@pytest.mark.parametrize("epan", [0, 1])
@pytest.mark.parametrize(("ap", "uxn", "pxn"), DIRECT)
def test_privileged_access_never(ap: int, uxn: int, pxn: int, epan: int) -> None:
    free = DIRECT[ap, uxn, pxn][0]
    el0 = free.split()[1]
    held = "r" in el0 or (epan and "x" in el0)
    expected = "--" + free[2:] if held else free
    machine = el10(leaf(ap, uxn, pxn), SCTLR_EL1=5 | epan * EPAN, PSTATE=1 << 22)
    assert rights(machine) == expected
    ats = ["AT S1E1R", "AT S1E1W", "AT S1E1RP", "AT S1E1WP", "AT S1E0R", "AT S1E0W", "AT S12E1R"]
    found = "".join("-" if machine.ask(name, VA).kind else name[-1] for name in ats)
    plain = "R" + ("W" if free[1] == "w" else "-")
    with_pan = "--" if held else plain.replace("R", "P").replace("W", "P")
    unprivileged = ("R" if el0[0] == "r" else "-") + ("W" if el0[1] == "w" else "-")
    assert found == plain + with_pan + unprivileged + "R"
    host = moved_to_el2(machine, E2H_TGE) if not epan else None
    if host:
        host.registers["PSTATE"] = 1 << 22
        assert rights(host, VA, OF_HOST) == expected


@pytest.mark.parametrize("feature", ["PAN", "EPAN"])
def test_a_machine_without_pan(feature: str) -> None:
    machine = el10(leaf(0, 0, 0), SCTLR_EL1=5 | EPAN, PSTATE=1 << 22)
    assert rights(machine) == "--x --x"
    machine.features = ALL - {feature}
    assert rights(machine) == "rwx --x"


def test_pan_has_no_hold_on_el2_alone() -> None:
    machine = moved_to_el2(el10(leaf(1, 0, 0)), 0)
    machine.registers["PSTATE"] = 1 << 22
    assert rights(machine, VA, OF_EL2) == "rwx "


INDIRECT = ["---", "r--", "--x", "r-x", "---", "rw-", "rw-", "rwx", "r--", "r--", "r-x", "---", "rw-", "---",
            "rwx", "---"]  # fmt: skip
"""PIR_ELx by encoding, no overlay: 6 gives no execution where it gives writing; 9 is a control stack."""
STACK = 9


def by_indirection(p: int, u: int, index: int = 0, word: int = PAGE1, **registers: int) -> Machine:
    """A page whose index names ``p`` in PIR_EL1 and ``u`` in PIRE0_EL1; every other index grants all."""
    everything = (1 << 64) // 15 * 0xE
    pir, pire0 = (everything & ~(15 << 4 * index) | value << 4 * index for value in (p, u))
    word |= (index & 1) << 6 | (index >> 1 & 1) << 51 | (index >> 2) << 53
    values = {"TCR2_EL1": 2, "HCRX_EL2": 1 << 14, "PIR_EL1": pir, "PIRE0_EL1": pire0}
    return el10(word, **(values | registers))


def indirect(p: int, u: int) -> str:
    """Rules of D8.4.2: what EL1 may execute and EL0 may write, nobody may touch (VFPJF)."""
    runs = p in (2, 3, 6, 7, 10, 14, STACK)
    stores = u in (5, 6, 7, 12, 14, STACK)
    return "--- ---" if runs and stores else f"{INDIRECT[p]} {INDIRECT[u]}"


@pytest.mark.parametrize("p", range(16))
def test_permission_indirection(p: int) -> None:
    assert [rights(by_indirection(p, u)) for u in range(16)] == [indirect(p, u) for u in range(16)]


@pytest.mark.parametrize("index", range(16))
def test_the_index_is_bits_54_53_51_6(index: int) -> None:
    assert rights(by_indirection(1, 1, index)) == "r-- r--"
    assert rights(by_indirection(0, 10, index)) == "--- r-x"


def test_indirection_ignores_table_bits_wxn_and_dbm_and_covers_what_el0_executes() -> None:
    machine = by_indirection(14, 2, SCTLR_EL1=5 | WXN)
    for at, word in machine.words.items():
        if word & 0xFFF == 3:
            machine.words[at] = word | 0xF << 59
    assert rights(machine) == "rwx --x"
    machine.registers["PSTATE"] = 1 << 22
    assert rights(machine) == "--x --x"  # PAN, whatever EPAN says


@pytest.mark.parametrize(("bits", "expected"), [(0, "r-- r--"), (1 << 39, "r-- r--"), (3 << 39, "rw- rw-")])
def test_a_page_marked_ndirty_is_written_where_hardware_manages_that(bits: int, expected: str) -> None:
    machine = by_indirection(5, 5, 0, PAGE1 | 1 << 7)
    machine.registers["TCR_EL1"] |= bits
    assert rights(machine) == expected


@pytest.mark.parametrize(("name", "cleared"), [("store at EL1", True), ("load at EL1", False)])
def test_hardware_clears_ndirty_at_a_write(name: str, cleared: bool) -> None:
    clean = PAGE1 | 1 << 7
    machine = by_indirection(5, 5, 0, clean)
    machine.registers["TCR_EL1"] |= 3 << 39
    assert machine.ask(name, VA, update=True).fault == "none"
    assert (PAGE1 if cleared else clean) in machine.words.values()


@pytest.mark.parametrize("off", ["TCR2_EL1", "HCRX_EL2"])
def test_indirection_wants_both_enables(off: str) -> None:
    machine = by_indirection(0, 0, **{off: 0})
    assert rights(machine) == "rwx --x"
    machine.registers |= {"TCR2_EL1": 2, "HCRX_EL2": 1 << 14}
    machine.features = ALL - {"S1PIE"}
    assert rights(machine) == "rwx --x"


@pytest.mark.parametrize(("hcr", "expected"), [(0, "rw- "), (E2H_TGE, "rw- r--")])
def test_indirection_at_el2(hcr: int, expected: str) -> None:
    machine = moved_to_el2(el10(), hcr)
    machine.registers |= {"TCR2_EL2": 2, "PIR_EL2": 5, "PIRE0_EL2": 1}
    assert rights(machine, VA, OF_HOST if hcr else OF_EL2) == expected


def test_every_combination_of_el0_and_el1_is_in_the_table() -> None:
    assert set(DIRECT) == set(product(range(4), range(2), range(2)))

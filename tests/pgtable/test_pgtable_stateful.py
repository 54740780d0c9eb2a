"""The whole library against a dictionary of leaves, with every invariant checked after each step."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pgtable_lab import BLOCK, DATA, GIGA, PAGE, PX, RW, RWX, RX, SIZE, UX, Lab, Op, R, W, lab

from shadowmmu.compiled import INTERPRETED

BITS = (40, 40, 48)
ROOTS = 2 + 2 + 1
AF, S2AP_W, PERMISSIONS = 1 << 10, 1 << 7, 3 << 6 | 3 << 53

MMU = st.integers(0, len(BITS) - 1)
LEVEL = st.sampled_from([3, 3, 3, 2, 2, 1])
PLACE = st.builds(
    lambda giga, block, page: giga * GIGA + block * BLOCK + page * PAGE,
    st.sampled_from([0, 1, 511, 512, 1023]),
    st.sampled_from([0, 1, 511]),
    st.sampled_from([0, 1, 2, 511]),
)
LENGTH = st.sampled_from([PAGE, 3 * PAGE, BLOCK, 3 * BLOCK - PAGE, GIGA, GIGA + PAGE, 2 * GIGA])
PROT = st.builds(
    lambda prot, tag: prot | tag << 55, st.sampled_from([RWX, RX, RW, R, R | UX, W | PX]), st.integers(0, 3)
)


def leaf_word(pa: int, level: int, prot: int, fwb: bool) -> int:
    """A leaf for normal memory, from the Arm ARM's table of fields."""
    execute_never = {PX | UX: 0b00, UX: 0b01, PX: 0b11, 0: 0b10}[prot & 3]
    word = pa | (0b11 if level == 3 else 0b01) | AF | 0b11 << 8 | (6 if fwb else 0xF) << 2
    return word | bool(prot & R) << 6 | bool(prot & W) << 7 | execute_never << 53 | prot >> 55 << 55


class Tables(RuleBasedStateMachine):
    """Operations on three MMUs; ``model`` holds (level, descriptor) by IPA for each."""

    machine: Lab

    @initialize(tlbirange=st.booleans(), fwb=st.booleans())
    def boot(self, tlbirange: bool, fwb: bool) -> None:
        self.machine = lab(BITS, frames=256, tlbirange=tlbirange, fwb=fwb)
        self.tlbirange, self.fwb = tlbirange, fwb
        self.model: list[dict[int, tuple[int, int]]] = [{} for _ in BITS]

    def overlapping(self, mmu: int, start: int, end: int) -> list[int]:
        """Leaves of the model that cover part of a range."""
        return sorted(
            ipa for ipa, (level, _) in self.model[mmu].items() if ipa < end and start < ipa + SIZE[level]
        )

    @rule(mmu=MMU, place=PLACE, level=LEVEL, frame=st.integers(0, 2), prot=PROT)
    def map(self, mmu: int, place: int, level: int, frame: int, prot: int) -> None:
        ipa, model = place // SIZE[level] * SIZE[level], self.model[mmu]
        pa = DATA + frame * SIZE[level]
        new = leaf_word(pa, level, prot, self.fwb)
        inside = self.overlapping(mmu, ipa, ipa + SIZE[level])
        old_level, old = model.get(ipa, (0, 0))
        counted = self.machine.counts(self.machine.map, mmu, ipa, level, pa, prot)
        flushes = {name: counted.get(name, 0) for name in ("tlbi_range", "tlbi_ipa", "tlbi_vmid")}
        expected = {"tlbi_range": 0, "tlbi_ipa": 0, "tlbi_vmid": 0}
        if old_level == level and (old ^ new) & ~PERMISSIONS == 0:
            assert set(counted) == {"descriptors_read"}, "left alone"
        else:
            if inside and model[inside[0]][0] > level:
                expected["tlbi_range" if self.tlbirange else "tlbi_vmid"] = 1
            elif inside:
                expected["tlbi_ipa"] = 1
            for gone in inside:
                del model[gone]
            model[ipa] = (level, new)
            assert counted.get("leaves_removed", 0) == (len(inside) if mmu else 0)
            assert counted.get("leaves_mapped", 0) == (1 if mmu else 0)
        assert flushes == expected

    @rule(mmu=MMU, start=PLACE, length=LENGTH, chunked=st.booleans(), may_block=st.booleans())
    def unmap(self, mmu: int, start: int, length: int, chunked: bool, may_block: bool) -> None:
        end = min(start + length, 1 << BITS[mmu])
        gone = self.overlapping(mmu, start, end)
        chunks = -(-end // GIGA) - start // GIGA if chunked else 1
        if chunked:
            counted = self.machine.counts(self.machine.unmap_range, mmu, start, end, may_block)
            assert counted["chunks"] == chunks
            assert counted.get("reschedules", 0) == (chunks - 1 if may_block else 0)
        else:
            counted = self.machine.counts(self.machine.unmap, mmu, start, end)
        deferred = self.tlbirange and self.fwb
        assert counted.get("tlbi_range", 0) == (chunks if deferred else 0)
        assert counted.get("tlbi_ipa", 0) == counted.get("tables_freed", 0) + (0 if deferred else len(gone))
        assert counted.get("leaves_removed", 0) == (len(gone) if mmu else 0)
        for ipa in gone:
            del self.model[mmu][ipa]

    @rule(which=st.integers(0, 63))
    def clear_leaf(self, which: int) -> None:
        leaves = [(mmu, ipa) for mmu, model in enumerate(self.model) for ipa in model]
        if not leaves:
            return
        mmu, ipa = leaves[which % len(leaves)]
        level, _ = self.model[mmu].pop(ipa)
        word = self.machine.entry(mmu, ipa)[0]
        read = self.machine.counts(self.machine.do, Op.CLEAR_LEAF, 0, word)
        assert "descriptors_read" not in read, "no walk"
        assert read.get("tlbi_ipa", 0) == read.get("tables_freed", 0)
        assert read["descriptors_written"] == 1 + read.get("tables_freed", 0) <= 1 + level

    @rule(mmu=MMU, start=PLACE, length=LENGTH, age=st.booleans())
    def protect_or_age(self, mmu: int, start: int, length: int, age: bool) -> None:
        end = min(start + length, 1 << BITS[mmu])
        bit = AF if age else S2AP_W
        changed = self.machine.do(Op.CLEAR_YOUNG if age else Op.WRITE_PROTECT, mmu, start, end)[0]
        leaves = self.overlapping(mmu, start, end)
        assert changed == sum(self.model[mmu][ipa][1] & bit != 0 for ipa in leaves)
        for ipa in leaves:
            level, word = self.model[mmu][ipa]
            self.model[mmu][ipa] = (level, word & ~bit)

    @rule(
        mmu=MMU, place=PLACE, prot=st.sampled_from([RWX, RW, R, RX, R | UX, W | PX, 0]), young=st.booleans()
    )
    def relax_or_make_young(self, mmu: int, place: int, prot: int, young: bool) -> None:
        leaves = self.overlapping(mmu, place, place + 1)
        if young:
            self.machine.do(Op.MAKE_YOUNG, mmu, place)
        else:
            assert self.machine.do(Op.RELAX, mmu, place, c=prot)[0] == len(leaves)
        for ipa in leaves:
            level, word = self.model[mmu][ipa]
            wanted = leaf_word(0, level, prot, self.fwb)
            kept = ~(3 << 53) if prot & (PX | UX) else -1
            added = PERMISSIONS if prot & (PX | UX) else PERMISSIONS & ~(3 << 53)
            relaxed = word & kept | wanted & added
            self.model[mmu][ipa] = (level, word | AF if young else relaxed)

    @rule(mmu=MMU, start=PLACE, length=st.sampled_from([PAGE, BLOCK + PAGE, GIGA]))
    def visit(self, mmu: int, start: int, length: int) -> None:
        end = min(start + length, 1 << BITS[mmu])
        assert [ipa for ipa, _, _ in self.machine.leaves(mmu, start, end)] == self.overlapping(
            mmu, start, end
        )

    @invariant()
    def tables_hold_the_model(self) -> None:
        if hasattr(self, "machine"):
            found = self.machine.check()
            for mmu, leaves in enumerate(self.model):
                assert {ipa: leaf[:2] for ipa, leaf in found[mmu].items()} == leaves

    def teardown(self) -> None:
        if hasattr(self, "machine"):
            for mmu, leaves in enumerate(self.model):
                visited = self.machine.leaves(mmu)
                assert [ipa for ipa, _, _ in visited] == sorted(leaves)
                for _, _, word in visited:
                    self.machine.do(Op.CLEAR_LEAF, 0, word)
            assert self.machine.tables_in_use() == ROOTS
            assert not self.machine.state.mem.any()


share = settings().max_examples * (1 if INTERPRETED else 4)
Tables.TestCase.settings = settings(
    max_examples=share, stateful_step_count=40, suppress_health_check=[HealthCheck.too_slow], deadline=None
)
TestTables = Tables.TestCase

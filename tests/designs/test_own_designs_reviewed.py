"""Faults planted in the template, each refuted by the objections that are about it: the review can fail.

Interpreted only: compiled, every copy would cost its own compilation.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowmmu.compiled import INTERPRETED
from shadowmmu.designs.own_file import forget_designs
from shadowmmu.verify.review.matrix import review
from shadowmmu.verify.review.objections import OBJECTIONS
from shadowmmu.verify.review.result import HOLDS, NOT_APPLICABLE, REFUTED, UNDETERMINED

TEMPLATE = Path(__file__).parents[2] / "src" / "shadowmmu" / "designs" / "template.py"
CONTEXT = "from shadowmmu.pgtable.context"
RECORD = "    node = ZERO\n    if not allocation_fails"
UNMAP_ALL = "    return act_on_all(s, start, end, may_block, UNMAP)"
FOUND = "        if not overlaps(s, node, N_CANONICAL, start, end):"
VALID = "        if shadow_valid(s, mmu):\n            s.count[MMUS_VISITED]"
FAULTS: dict[str, tuple[tuple[tuple[str, str], ...], tuple[int, ...]]] = {
    "only the first hit goes": (((FOUND, FOUND[:-1] + " or changed > 0:"),), (5, 16, 35)),
    "a page is found by its own start only": (
        ((FOUND, "        if s.rmap[node + N_CANONICAL] != start:"),),
        (10, 37, 49),
    ),
    "a leaf of nested IPA 0 is no leaf": (
        ((RECORD, "    if nested_ipa == ZERO:\n        return\n" + RECORD),),
        (20,),
    ),
    "the record loses bit 47": (
        (("[node + N_NESTED] = nested_ipa\n", "[node + N_NESTED] = nested_ipa & U64((1 << 47) - 1)\n"),),
        (21,),
    ),
    "blocks are not recorded": (
        ((RECORD, "    if level < 3:\n        return\n" + RECORD),),
        (10, 16, 37),
    ),
    "with stage 2 off nothing is recorded": (
        ((RECORD, "    if s.mmus[mmu, 6] == ZERO:\n        return\n" + RECORD),),
        (7, 50),
    ),
    "a failed allocation is nobody's": (
        (("        s.mmus[mmu, M_BROKEN] = ONE\n        s.count[BROKEN] += 1\n", ""),),
        (17, 28),
    ),
    "what L1 takes stays on the list": (
        (("        if overlaps(s, node, N_NESTED, start, end):", "        if start > end:"),),
        (24, 32),
    ),
    "a query takes entries off": (
        (
            (
                "        if action == UNMAP:\n            if before",
                "        if action != PROTECT:\n            if before",
            ),
        ),
        (12, 18),
    ),
    "ageing does nothing": (
        (("    return act_on_all(s, start, end, may_block, AGE)", "    return 0"),),
        (12, 18, 30),
    ),
    "write protection does nothing": (
        (("    return act_on_all(s, start, end, may_block, PROTECT)", "    return 0"),),
        (48,),
    ),
    "a deleted memslot is not looked up": (
        ((UNMAP_ALL, "    if cause == 1:\n        return 0\n" + UNMAP_ALL),),
        (32, 49),
    ),
    "a recycled MMU is left out until its wipe": (
        ((VALID, VALID.replace("mmu):", "mmu) and s.mmus[mmu, 8] == ZERO:")),),
        (40,),
    ),
    "the first MMU only": (
        ((VALID, VALID.replace("mmu):", "mmu) and mmu == 1:")),),
        (15, 16, 30, 31),
    ),
    "only what L1 itself has touched is looked up": (
        (
            (CONTEXT, f"from shadowmmu.pgtable.attributes import find_entry\n{CONTEXT}"),
            (
                UNMAP_ALL,
                f"    if s.mem[find_entry(s, 0, start)[0]] & ONE == ZERO:\n        return 0\n{UNMAP_ALL}",
            ),
        ),
        (13,),
    ),
    "every unmap takes all": (
        ((UNMAP_ALL, "    return act_on_all(s, ZERO, U64(1 << 47), may_block, UNMAP)"),),
        (15,),
    ),
}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    if not INTERPRETED:
        pytest.skip("compiled, every copy costs its own compilation")
    yield
    forget_designs()


def copy(tmp_path: Path, *changes: tuple[str, str]) -> str:
    """A copy of the template with (old, new) changed."""
    text = TEMPLATE.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refuted_by_the_objections_about_it(tmp_path: Path, fault: str) -> None:
    changes, numbers = FAULTS[fault]
    matrix = review([copy(tmp_path, *changes)], numbers)
    verdicts = {number: matrix.result(number, "list").verdict for number in numbers}
    assert verdicts == dict.fromkeys(numbers, REFUTED)


def test_a_lock_let_go_between_lookup_and_removal_is_found(tmp_path: Path) -> None:
    freed = (
        "            node_free(s.rmap, NODE, node)\n        else:\n            before = node\n        # may"
    )
    read = "        nested_ipa = s.rmap[node + N_NESTED]\n"
    lock, unlock = "        tree_lock(s)\n", "        tree_unlock(s)\n"
    changes = ((freed, "    " + unlock + freed), (read, lock + read + unlock + lock))
    result = review([copy(tmp_path, *changes)], [11]).result(11, "list")
    assert result.verdict == REFUTED
    assert "free already" in result.detail


def test_insertions_without_a_lock_are_not_called_safe(tmp_path: Path) -> None:
    path = copy(tmp_path, ("    tree_lock(s)\n    s.rmap[node + N_NEXT]", "    s.rmap[node + N_NEXT]"))
    assert review([path], [6]).result(6, "list").verdict == UNDETERMINED


def test_the_template_itself_is_not_refuted(tmp_path: Path) -> None:
    quick = [each.number for each in OBJECTIONS if each.number not in (3, 14, 19)]
    matrix = review([copy(tmp_path)], quick)
    assert matrix.refuted("list") == []
    verdicts = {matrix.result(number, "list").verdict for number in quick if number != 26}
    assert verdicts == {HOLDS, NOT_APPLICABLE}

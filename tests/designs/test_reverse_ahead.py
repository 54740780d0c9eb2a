"""Looking ahead: it names the words that the event itself will meet, and changes nothing."""

from __future__ import annotations

import pytest
from design_lab import DATA, NESTED, PAGE, run, script

from shadowmmu.compiled import INTERPRETED, U64, Word, Words, kernel
from shadowmmu.designs import reverse_ahead as looking
from shadowmmu.designs.dispatch import design_ahead, design_near
from shadowmmu.designs.reverse_table_check import recorded_leaves
from shadowmmu.machine.state import State, image_digest
from shadowmmu.pgtable import ahead
from shadowmmu.pgtable.ahead import entry_ahead

PAGES = 200
MANY = f"map {NESTED:#x} {DATA:#x} {4 * PAGES}k 3 rw\ntouch w {NESTED:#x} 4096 {PAGES}"
FEW = f"map {NESTED:#x} {DATA:#x} 64k 3 rw\ntouch w {NESTED:#x} 4096 5"
ALIAS = f"map 0xa0000000 {DATA:#x} 4k 3 rw\ntouch w 0xa0000000"
Named = list[tuple[int, int]]


@kernel
def look(s: State, nested_ipa: Word, canonical_ipa: Word) -> None:
    """All three looks at once."""
    entry_ahead(s, 1, nested_ipa)
    design_ahead(s, canonical_ipa)
    design_near(s, canonical_ipa)


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Named:
    """The words asked for, as (address of the array, index)."""
    if not INTERPRETED:
        pytest.skip("compiled, a hint leaves no trace")
    found: Named = []

    def note(words: Words, at: Word) -> None:
        found.append((words.ctypes.data, int(at)))

    monkeypatch.setattr(looking, "prefetch", note)
    monkeypatch.setattr(ahead, "prefetch", note)
    return found


@pytest.mark.parametrize("text", [MANY, FEW], ids=["full", "small"])
def test_it_names_the_words_of_the_event(named: Named, text: str) -> None:
    s = run("reverse_table", script(text)).state
    for entry in [e for e in recorded_leaves(s) if e.canonical_ipa >= DATA][:4]:
        named.clear()
        look(s, U64(entry.canonical_ipa - DATA + NESTED), U64(entry.canonical_ipa))
        assert named[:2] == [(s.mem.ctypes.data, entry.word), (s.side.ctypes.data, entry.word)]
        array, at = named[2]
        assert array == s.rmap.ctypes.data
        if text == MANY:
            assert int(s.rmap[at]) & ((1 << 33) - 1) == entry.word
            assert named[3:] == [(s.mem.ctypes.data, entry.word)]
        else:
            assert int(s.rmap[at]) == 0, "a free place of the small leaf"
            assert named[3:] == []


def test_it_names_nothing_where_nothing_is(named: Named) -> None:
    s = run("reverse_table", script(MANY)).state
    look(s, U64(0x30_0000_0000), U64(0x30_0000_0000))
    assert named == []


def test_a_chain_is_not_followed(named: Named) -> None:
    s = run("reverse_table", script(ALIAS, MANY)).state
    look(s, U64(NESTED), U64(DATA))
    assert [array for array, _at in named] == [array.ctypes.data for array in (s.mem, s.side, s.rmap)]


def test_a_removal_fetches_the_first_lines_of_the_next_leaf(named: Named) -> None:
    s = run("reverse_table", script(MANY)).state
    child = U64(4096 | 200 << 36)
    looking.leaf_near(s, child)
    assert named == [(s.rmap.ctypes.data, 4096 + 8 * line) for line in range(looking.FIRST_LINES)]


@pytest.mark.parametrize("design", ["reverse_table", "sweep"])
def test_it_changes_nothing(design: str) -> None:
    s = run(design, script(MANY)).state
    before = image_digest(s)
    for page in (0, PAGES - 1, PAGES, 1 << 20):
        look(s, U64(NESTED + page * PAGE), U64(DATA + page * PAGE))
    assert image_digest(s) == before

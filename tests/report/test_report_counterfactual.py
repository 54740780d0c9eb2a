"""A replayed trace as text, as a page and as rows: every number stands where it belongs."""

from __future__ import annotations

import io
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from shadowmmu.formats.shadow_trace import ShadowTrace
from shadowmmu.lab.counterfactual import COUNTED, OUTCOME_NAMES, Counterfactual, DesignAnswer
from shadowmmu.lab.recorded_cost import Fate
from shadowmmu.lab.trace_join import BY_OUTPUT, NOT_FOUND, join_trace
from shadowmmu.report.counterfactual_html import render_counterfactual, shares
from shadowmmu.report.counterfactual_rows import ROWS, percent, rows_for
from shadowmmu.report.counterfactual_table import print_counterfactual
from shadowmmu.report.table import console

FILL = (
    "vmm-1 [000] ...2. 1.000001: s2map: (f+0x4/0x8) pgt=0x1 vttbr=0x1000000000000 addr=0x1000 size=0x1000"
    " phys=0x2000 prot=0x18000000000000f\n"
)


def answer(design: str, exact: bool, *, safe: bool = True, **fills: int) -> DesignAnswer:
    """A made-up answer about 1000 fills."""
    named = {name: fills.get(name, 0) for name in OUTCOME_NAMES.values()}
    return DesignAnswer(
        design=design,
        claims_safety=safe,
        exact=exact,
        fills=named,
        spared_after_notifier=named["spared"],
        spared_after_l1=0,
        taken_by_notifiers=4321,
        taken_by_l1=77,
        notifiers_that_hit=9,
        over_unmapped_leaves=None,
        other_spans=0,
        peak_leaves=555,
        record_bytes=8192,
        counters={**dict.fromkeys(COUNTED, 0), "chunks_shadow": 6},
        modelled_ns=1.5e6,
    )


@pytest.fixture
def found() -> Counterfactual:
    trace = join_trace(ShadowTrace(["# tracer: nop\n", FILL], "<made & up>"))
    trace.joins.clear()
    trace.joins.update({BY_OUTPUT: 900, NOT_FOUND: 100})
    trace.recorded.fates.clear()
    trace.recorded.fates.update({Fate.FIRST: 400, Fate.AFTER_NOTIFIER: 350, Fate.AFTER_GUEST: 250})
    answers = [
        answer("sweep", False, first_touch=400, refault_avoidable=350, refault_after_l1=250),
        answer("mine", False, first_touch=400, spared=345, refault_needed=5, refault_after_l1=250),
        answer("poor", False, safe=False, first_touch=400, spared=590, stale=10),
        answer("mine", True, first_touch=400, spared=590, refault_needed=10),
    ]
    return Counterfactual(
        trace=trace, answers=answers, disagreements=[], disagreeing=0, compared=1000, outcomes={}, removed={}
    )


def text_of(found: Counterfactual) -> str:
    stream = io.StringIO()
    print_counterfactual(found, console(stream))
    return stream.getvalue()


def test_the_text_has_the_answer_the_books_and_the_designs(found: Counterfactual) -> None:
    text = text_of(found)
    assert "1,000 shadow fills of L2; 600 of them (60.0 %) repair" in text
    assert "as KVM spans them: mine spares 345 of these (57.5 %)." in text
    assert "L1's invalidations exact: mine spares 590 of these (98.3 %)." in text
    remain = [line.split()[3:] for line in text.splitlines() if line.startswith("fills that remain")]
    assert remain == [["1,000", "655", "410"], ["410"]]
    assert "poor (unsafe)" in text
    assert "finds all 1,000 fills" in text
    assert "not joined: no canonical fill" in text


def test_rows_that_say_nothing_are_left_out_and_unknown_is_a_dash(found: Counterfactual) -> None:
    kept = [row.label for row in rows_for(found.answers)]
    assert "STALE" in kept
    assert "resized" not in kept
    assert "record nodes visited" not in kept
    unknown = next(row for row in ROWS if row.label == "over-unmapped, all MMUs")
    assert unknown.text(found.answers[0]) == "-"


def test_a_disagreement_is_shown_with_its_line(found: Counterfactual) -> None:
    text = text_of(replace(found, disagreements=[(17, "first", "spared")], disagreeing=3))
    assert "sweep takes 3 of 1,000 fills for something else" in text
    assert "line 17: the trace shows first, sweep finds spared" in text


def test_an_upper_bound_is_called_one(found: Counterfactual) -> None:
    answers = [replace(found.answers[1], other_spans=2)]
    assert "mine, l1's invalidations as kvm spans them: took what was not recorded" in " ".join(
        text_of(replace(found, answers=answers)).split()
    )


def test_designs_that_do_not_fit_beside_each_other_are_continued(found: Counterfactual) -> None:
    many = [replace(found.answers[0], design=f"number{i}") for i in range(6)]
    text = text_of(replace(found, answers=many))
    assert "(continued)" in text
    assert all(f"number{i}" in text for i in range(6))


class Page(HTMLParser):
    """Checks that tags close, and remembers what is loaded from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_well_formed_escaped_and_loads_nothing(found: Counterfactual) -> None:
    text = render_counterfactual(found)
    page = Page()
    page.feed(text)
    assert (page.open, page.loads) == ([], [])
    assert "<made &amp; up>" in text or "&lt;made &amp; up&gt;" in text
    assert "<script" not in text
    for part in ("57.5 %", "4,321", "poor (unsafe)", "590"):
        assert part in text


def test_the_boxes_of_a_bar_fill_it(found: Counterfactual) -> None:
    for one in found.answers:
        assert sum(float(width) for _part, width in shares(one)) == pytest.approx(100, abs=0.01)


def test_a_share_of_nothing_is_a_dash() -> None:
    assert (percent(1, 8), percent(0, 0)) == ("12.5 %", "-")

"""``walk`` and ``run`` as the lab answers them."""

from __future__ import annotations

from importlib.resources import files

import pytest

from shadowmmu.errors import InputError
from shadowmmu.lab.explain import walk_report
from shadowmmu.lab.replay import run_scenario
from shadowmmu.lab.results import ScenarioSource

MID_BLOCK = ScenarioSource(
    name="mid-block",
    text=(files("shadowmmu") / "data" / "scenarios" / "mid-block.scenario").read_text(),
)
S2_OFF = ScenarioSource(
    name="s2-off",
    text="mem 64M\nstart base 0 0\nwrite 0x41000000 4k\nvm 0\ncodeat 0x40050000\ntouch w 0x41000000 4096 1\n",
)


def test_a_walk_shows_every_descriptor_of_both_tables() -> None:
    report = walk_report(MID_BLOCK, 0x8000_5000, at="mapped")
    guest, shadow = report.data["guest"], report.data["shadow"]
    assert [row["level"] for row in guest] == [1, 2]
    assert [row["level"] for row in shadow] == [0, 1, 2]
    assert report.data["canonical_ipa"] == 0x4100_5000
    assert guest[-1]["fields"]["AF"] == 1
    assert any("as the chain says" in line for line in report.lines)


def test_a_stale_leaf_is_called_what_it_is() -> None:
    report = walk_report(MID_BLOCK, 0x8000_5000, at="after-notifier", design="rbtree_2024")
    assert any("NOT what the chain says" in line for line in report.lines)
    assert report.data["pa"] is None


def test_an_unmapped_address_faults_in_both_tables() -> None:
    report = walk_report(MID_BLOCK, 0x1_0000_0000)
    assert report.data["fault"] == "translation fault, level 1 (FSC 0x05)"
    assert report.lines[-1].strip().startswith("an access takes a translation fault, level 1")


def test_stage_2_off_is_the_identity() -> None:
    report = walk_report(S2_OFF, 0x4100_0000)
    assert report.data["guest"] == []
    assert report.data["canonical_ipa"] == 0x4100_0000


def test_a_walk_changes_nothing() -> None:
    assert walk_report(MID_BLOCK, 0x8000_5000).lines == walk_report(MID_BLOCK, 0x8000_5000).lines


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"at": "nowhere"}, "expected a line number or one of mapped"),
        ({"mmu": 1}, "expected one with a tenant: 0"),
        ({"design": "none"}, "one of sweep"),
        ({"nested_ipa": 1 << 50}, "expected less than 2^48"),
    ],
)
def test_a_bad_question_is_refused(arguments: dict[str, object], told: str) -> None:
    nested_ipa = arguments.pop("nested_ipa", 0x8000_0000)
    with pytest.raises(InputError) as caught:
        walk_report(MID_BLOCK, nested_ipa, **arguments)  # type: ignore[arg-type]
    assert told in str(caught.value)


def test_a_line_number_names_a_place() -> None:
    early = walk_report(MID_BLOCK, 0x8000_0000, at="8")
    assert early.data["shadow"][-1]["descriptor"] & 1  # line 8 is the touch


def test_run_tells_commands_dumps_events_and_verdict() -> None:
    transcript = run_scenario(MID_BLOCK, show_events=True)
    text = "\n".join(transcript.lines)
    assert "> punch 0x41005000 4k" in text
    assert "unmap_gfn: start=0x41005 end=0x41006" in text
    assert "0x0000000080000000-0x0000000080400000           4M 2   R W PXNUXN AF BLK" in text
    assert transcript.verdict is not None
    assert transcript.verdict.safe
    assert [dump["label"] for dump in transcript.data["dumps"]] == ["mapped", "after-notifier", "end"]
    assert any(event["name"] == "s2map" for event in transcript.data["events"])


def test_run_tells_what_a_host_without_features_pays() -> None:
    full, without = run_scenario(MID_BLOCK), run_scenario(MID_BLOCK, tlbirange=False, fwb=False)
    assert "no FEAT" not in full.title
    assert without.title.endswith(", no FEAT_TLBIRANGE, no FEAT_S2FWB")
    assert (without.data["tlbirange"], without.data["fwb"]) == (False, False)
    assert without.data["counters"]["cache_cleans"] > 0
    assert "cache_cleans" not in full.data["counters"]
    assert "tlbi_range" in full.data["counters"]
    assert "tlbi_range" not in without.data["counters"]


def test_run_can_be_asked_not_to_judge() -> None:
    verdict = run_scenario(MID_BLOCK, judge_mode="never").verdict
    assert verdict is not None
    assert not verdict.judged


LARGE_PAGES = ScenarioSource(
    name="large-pages",
    text="mem 64M\ngranule 16K\nstart base\ns2 new 1\ncode\nmap 0x80000000 0x41000000 64k 3 rw\n"
    "touch w 0x80004000\ndump end n\n",
)


def test_a_walk_and_a_run_on_16k_pages() -> None:
    walk = walk_report(LARGE_PAGES, 0x8000_4123, ipa_limit_bits=40)
    text = "\n".join(walk.lines)
    assert [row["level"] for row in walk.data["guest"]] == [2, 3]
    assert [row["level"] for row in walk.data["shadow"]] == [2, 3]
    assert walk.data["canonical_ipa"] == 0x4100_4123
    assert "as the chain says; L1's leaf level in the tag: 3" in text
    run = run_scenario(LARGE_PAGES, ipa_limit_bits=40)
    assert run.title == "large-pages under sweep, 40-bit IPA limit, pages of 16K"
    assert run.data["granule"] == "16K"
    assert any("16K 3" in line for line in run.lines)


def test_the_granule_asked_for_is_that_of_a_script_that_says_none() -> None:
    source = ScenarioSource(name="plain", text=LARGE_PAGES.text.replace("granule 16K\n", ""))
    assert run_scenario(source, ipa_limit_bits=40, granule="64K", judge_mode="never").data["granule"] == "64K"
    assert walk_report(source, 0x8000_4000, ipa_limit_bits=40, granule="16K").data["pa"] is not None
    bad = ScenarioSource(name="plain", text=source.text.replace("64k 3", "4k 3"))
    with pytest.raises(InputError, match="aligned"):
        run_scenario(bad, granule="16K")

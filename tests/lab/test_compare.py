"""What ``compare`` promises: agreement with the kernel, verdicts, precision, clear refusals."""

from __future__ import annotations

from importlib.resources import files

import pytest

from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.errors import InputError
from shadowmmu.lab.compare import bundled_scenarios, compare, design_names
from shadowmmu.lab.results import CompareOptions, Comparison, DesignResult, ScenarioSource

DESIGNS = tuple(CATALOGUE)
CONTROLS = {name for name, design in CATALOGUE.items() if not design.claims_safety}


def only(comparison: Comparison, design: str) -> DesignResult:
    (found,) = [result for result in comparison.results if result.design == design]
    return found


def bundled(name: str) -> ScenarioSource:
    path = files("shadowmmu") / "data" / "scenarios" / f"{name}.scenario"
    return ScenarioSource(name=name, text=path.read_text())


@pytest.fixture(scope="module")
def alias() -> Comparison:
    return compare(CompareOptions(runs=("scenario/09-alias",)))


def test_every_design_is_compared_in_catalogue_order(alias: Comparison) -> None:
    assert tuple(result.design for result in alias.results) == DESIGNS


def test_sweep_agrees_with_the_kernel_dump_by_dump(alias: Comparison) -> None:
    agreement = only(alias, "sweep").agreement
    assert agreement is not None
    assert agreement.agrees
    assert agreement.compared_dumps == 9  # three dumps of three tables
    assert all(only(alias, design).agreement is None for design in DESIGNS[1:])


def test_the_alias_run_refutes_the_rfc_with_leaf_and_chain(alias: Comparison) -> None:
    verdict = only(alias, "rbtree_2024").verdict
    assert verdict.refuted
    witness = "\n".join(verdict.witness)
    assert witness.startswith("A1: ")
    assert "dontneed 0x41001000 4k" in witness
    assert "nested_mmu0" in witness
    assert "canonical IPA 0x41001000" in witness
    assert "maps nothing" in witness


def test_the_hosts_features_reach_scenarios_and_storms() -> None:
    asked: dict[str, object] = {"designs": ("sweep",), "ipa_limit_bits": 40}
    tiny = ScenarioSource(name="tiny", text="start base\ns2 new 1\ncode\ntouch x 0x10000\ntlbi 4\n")
    for kind in ({"scenarios": (tiny,)}, {"only": "storm", "leaves": 200, "notifiers": 1}):
        for features in ({}, {"tlbirange": False}, {"fwb": False}):
            (result,) = compare(CompareOptions(**asked, **kind, **features)).results  # type: ignore[arg-type]
            assert (result.counters["cache_cleans"] > 0) == ("fwb" in features)
            assert (result.counters["tlbi_range"] > 0) == (not features)


@pytest.mark.parametrize("design", [name for name in DESIGNS if name not in CONTROLS])
def test_the_others_are_safe_on_it(alias: Comparison, design: str) -> None:
    assert only(alias, design).verdict.safe


def test_the_reverse_table_takes_only_what_it_must(alias: Comparison) -> None:
    ours, sweep = only(alias, "reverse_table").counters, only(alias, "sweep").counters
    assert ours["over_unmapped_bytes"] == 0
    assert ours["refaults_avoidable"] == 0
    assert ours["refaults_caused"] == 16  # sixteen aliases of one page
    assert sweep["refaults_caused"] == 33  # those, the other sixteen, and L2's code
    assert sweep["chunks_shadow"] == 1 << 18


def test_a_mid_block_notifier_refutes_the_rfc() -> None:
    comparison = compare(CompareOptions(scenarios=(bundled("mid-block"),)))
    verdict = only(comparison, "rbtree_2024").verdict
    assert verdict.refuted
    assert any("canonical IPA 0x41005000" in line for line in verdict.witness)
    for design in ("sweep", "spanning", "reverse_table"):
        assert only(comparison, design).verdict.safe


@pytest.mark.parametrize("source", bundled_scenarios(), ids=lambda source: source.name)
def test_bundled_scenarios_tell_the_designs_apart(source: ScenarioSource) -> None:
    comparison = compare(CompareOptions(scenarios=(source,)))
    refuted = {result.design for result in comparison.results if result.verdict.refuted}
    about_at = source.name.startswith("scenarios/at-")  # no notifier in it: every design does
    assert ("rbtree_2024" in refuted) == (not about_at)
    assert refuted <= CONTROLS


def test_a_storm_costs_the_precise_designs_only_what_was_taken() -> None:
    options = CompareOptions(only="storm", leaves=3000, notifiers=2, ipa_limit_bits=40, seed=7)
    comparison = compare(options)
    sweep = only(comparison, "sweep")
    assert sweep.leaves > 3000
    assert sweep.counters["refaults_caused"] > 3000
    for design in ("spanning", "reverse_table"):
        counters = only(comparison, design).counters
        assert counters["over_unmapped_bytes"] == 0
        assert counters["refaults_caused"] == 2
        assert counters["notifiers"] == sweep.counters["notifiers"]
        assert only(comparison, design).modelled_ns < sweep.modelled_ns / 1000


def test_the_same_seed_gives_the_same_counts() -> None:
    options = CompareOptions(only="storm", leaves=500, notifiers=1, ipa_limit_bits=40, designs=("sweep",))
    first, second = compare(options), compare(options)
    # Wall time is the one number that may differ.
    timeless = [
        {k: v for k, v in run.results[0].counters.items() if k != "notifier_wall_ns"}
        for run in (first, second)
    ]
    assert timeless[0] == timeless[1]


def test_nobody_judged_is_not_safe() -> None:
    options = CompareOptions(scenarios=(bundled("mid-block"),), judge="never", designs=("rbtree_2024",))
    verdict = compare(options).results[0].verdict
    assert not verdict.judged
    assert not verdict.safe


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (CompareOptions(designs=("maple",)), "read design 'maple', expected a Python file or one of sweep"),
        (CompareOptions(runs=("scenario/99",)), "scenario/99"),
        (CompareOptions(only="storm", ipa_limit_bits=99), "99 IPA bits"),
        (CompareOptions(only="storm", leaves=0), "storm:"),
        (CompareOptions(scenarios=(ScenarioSource(name="x", text="mem 64M\nbogus\n"),)), "x:2: read 'bogus'"),
    ],
)
def test_bad_questions_are_refused(options: CompareOptions, told: str) -> None:
    with pytest.raises(InputError, match=r".") as caught:
        compare(options)
    assert told in str(caught.value)


def test_all_designs_by_default() -> None:
    assert tuple(design_names(())) == DESIGNS


def test_a_storm_of_16k_pages_sweeps_more_chunks() -> None:
    options = CompareOptions(
        only="storm",
        leaves=300,
        notifiers=1,
        ipa_limit_bits=40,
        granule="16K",
        designs=("sweep", "reverse_table"),
    )
    comparison = compare(options)
    sweep, table = comparison.results
    assert "16K" in comparison.conditions["workload"]
    assert sweep.counters["chunks_shadow"] % (1 << 40 - 25) == 0
    assert sweep.counters["chunks_shadow"] > 0 == table.counters["chunks_shadow"]
    assert not table.verdict.refuted

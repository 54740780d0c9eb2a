"""The judge's rules about the pool of shadow MMUs, each broken by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shadowmmu.compiled import U64
from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.kvm.layout import V_HW_MMU
from shadowmmu.machine.state import State
from shadowmmu.pgtable.context import CNP, M_ENABLED, M_PENDING, M_REFCNT, M_VTCR, M_VTTBR
from shadowmmu.verify.judge import Judge
from shadowmmu.verify.pool_rules import judge_pool
from shadowmmu.verify.rules import ALL_RULES, HOLDS, RUNS_UNWIPED, TWO_TENANCIES, WRONG_REFERENCES

SCRIPT = """mem 64M
vcpus 2
start base
s2 new 1
code
touch r 0x41000000
s2 new 2
code
enter
vcpu 1
s2 0x40100000 1
enter
exit
load
"""


def made() -> Executor:
    """Tenants 1 and 2 in MMUs 1 and 2; vCPU 0 is inside with 2, vCPU 1 is loaded with 1."""
    executor = Executor(parse_scenario(SCRIPT, "pool"), "sweep", Machine(ipa_limit_bits=40))
    executor.run()
    return executor


def same_name(s: State) -> None:
    s.mmus[2, [M_VTTBR, M_VTCR]] = s.mmus[1, [M_VTTBR, M_VTCR]]


def same_vmid_off(s: State) -> None:
    s.mmus[1:3, M_ENABLED] = 0
    s.mmus[2, M_VTTBR] = s.mmus[1, M_VTTBR] | U64(0x1000)


def lost_reference(s: State) -> None:
    s.mmus[1, M_REFCNT] = 0


def one_too_many(s: State) -> None:
    s.mmus[3, M_REFCNT] = 1


def no_tenant(s: State) -> None:
    s.mmus[1, M_VTTBR] = CNP


def unwiped(s: State) -> None:
    s.mmus[2, M_PENDING] = 1


@pytest.mark.parametrize(
    ("breaks", "rule", "mmu"),
    [
        (same_name, "A8", 2),
        (same_vmid_off, "A8", 2),
        (lost_reference, "A9", 1),
        (one_too_many, "A9", 3),
        (no_tenant, "A9", 1),
        (unwiped, "A10", 2),
    ],
)
def test_a_broken_rule_of_the_pool_is_reported(breaks: Callable[[State], None], rule: str, mmu: int) -> None:
    executor = made()
    last = len(executor.scenario.events) - 1
    judge = Judge()
    judge.look(executor, last)
    assert judge.worst is None
    breaks(executor.state)
    judge.look(executor, last)
    found = {violation.rule: violation for violation in judge.found.values()}
    assert found.keys() - {"A6"} == {rule}, (
        "with stage 2 switched off under them the leaves' tags are wrong too"
    )
    violation, kept = found[rule], judge.found.keys()
    assert f"nested_mmu{mmu - 1} " in violation.lines[-1]
    assert "references" in violation.lines[-1]
    judge.look(executor, last)
    assert judge.found.keys() == kept, "found once"


def legal_vtcr(s: State) -> None:
    same_name(s)
    s.mmus[2, M_VTCR] += U64(1)


def legal_vttbr(s: State) -> None:
    s.mmus[2, M_VTTBR] = s.mmus[1, M_VTTBR] | U64(0x1000)


def legal_on_and_off(s: State) -> None:
    same_name(s)
    s.mmus[2, M_ENABLED] = 0


def legal_vmids_off(s: State) -> None:
    s.mmus[1:3, M_ENABLED] = 0


def legal_pending(s: State) -> None:
    s.mmus[1, M_PENDING] = 1


@pytest.mark.parametrize(
    "changes", [legal_vtcr, legal_vttbr, legal_on_and_off, legal_vmids_off, legal_pending]
)
def test_what_the_pool_may_hold(changes: Callable[[State], None]) -> None:
    executor = made()
    changes(executor.state)
    assert int(judge_pool(executor.state, ALL_RULES).rule) == HOLDS


def test_only_the_rules_asked_for_are_judged() -> None:
    executor = made()
    for breaks in (same_name, lost_reference, unwiped):
        breaks(executor.state)
    asked = [
        judge_pool(executor.state, 1 << rule).rule for rule in (TWO_TENANCIES, WRONG_REFERENCES, RUNS_UNWIPED)
    ]
    assert asked == [TWO_TENANCIES, WRONG_REFERENCES, RUNS_UNWIPED]
    assert int(judge_pool(executor.state, 0).rule) == HOLDS
    assert executor.state.vcpus[:, V_HW_MMU].tolist() == [2, 1]

"""Results made up for the tests of reports: plausible, fixed, and from no run."""

from __future__ import annotations

from shadowmmu.lab.results import Agreement, Comparison, DesignResult, RunKind, Verdict

SAFE = Verdict(safe=True, summary="no violation in 12 judged states")
STALE = Verdict(
    safe=False,
    summary="stale leaf after event 17 (dontneed 0x40200000 4K)",
    witness=[
        "event 17: dontneed canonical 0x40200000 4K",
        "leaf: shadow MMU 1, nested 0x80000000 4K, level 3, descriptor 0x60000040200743",
        "chain: nested 0x80000000 -> canonical 0x40200000 -> PA 0x40200000; the host maps nothing there",
        "rule: A1, no valid shadow leaf translates to memory the host no longer maps",
    ],
)
NOT_JUDGED = Verdict(safe=False, summary="the judge was switched off", judged=False)

COSTS = {
    "sweep": (1 << 44, 1_048_575, 262_144 * 32, 12_582_912, 0, 0, 9.3e9, 2.1e8),
    "rbtree_2024": (0, 0, 0, 96, 608, 50_331_648, 3.2e5, 1.9e6),
    "spanning": (3 << 21, 1_533, 24, 3_168, 1_024, 29_360_128, 1.4e7, 2.4e6),
    "reverse_table": (0, 0, 0, 64, 192, 8_650_752, 2.9e5, 1.1e6),
}


def result(
    design: str,
    run: str = "scenario/09-alias",
    kind: RunKind = "kernel",
    ipa_limit_bits: int = 48,
    verdict: Verdict = SAFE,
    agreement: Agreement | None = None,
    scale: float = 1.0,
) -> DesignResult:
    """One result; the costs of a storm times ``scale``."""
    over, refaults, chunks, read, nodes, held, modelled, measured = COSTS[design]
    counters = {
        "notifiers": 8,
        "over_unmapped_bytes": int(over * scale),
        "refaults_caused": int(refaults * scale),
        "shadow_mmus_visited": 32 if design == "sweep" else 8,
        "chunks": int(chunks * scale),
        "descriptors_read": int(read * scale),
        "tlbis": int(chunks * scale) or 8,
        "nodes_visited": nodes,
        "reverse_map_bytes": held,
    }
    return DesignResult(
        run=run,
        kind=kind,
        design=design,
        ipa_limit_bits=ipa_limit_bits,
        shadow_mmus=4,
        leaves=1_048_576,
        verdict=verdict,
        counters=counters,
        modelled_ns=modelled * scale,
        measured_ns=measured * scale,
        agreement=agreement,
        claims_safety=design != "rbtree_2024",
    )


def comparison(agrees: bool = True) -> Comparison:
    """Three kernel runs and two storms under four designs."""
    results = []
    for run, stale in (
        ("scenario/01-base4k", False),
        ("scenario/09-alias", True),
        ("cost/counted-chunks", False),
    ):
        for design in COSTS:
            fits = agrees or run != "scenario/09-alias"
            answer = Agreement(
                12, fits, [] if fits else ["dump 3, line 2", "kernel: 0x80000000", "model: nothing"]
            )
            results.append(
                result(
                    design,
                    run,
                    verdict=STALE if stale and design == "rbtree_2024" else SAFE,
                    agreement=answer if design == "sweep" else None,
                    scale=1e-3,
                )
            )
    for bits, scale in ((48, 1.0), (40, 1 / 256)):
        results += [
            result(
                design,
                "storm",
                "storm",
                bits,
                STALE if design == "rbtree_2024" else SAFE,
                scale=scale if design == "sweep" else 1.0,
            )
            for design in COSTS
        ]
    return Comparison(
        conditions={"shadowmmu": "0.1.0", "seed": "1", "cost model": "made-up.toml: no hardware"},
        results=results,
        started="2026-11-22T20:00:00+00:00",
        elapsed_s=12.34,
    )

"""What a run comes to, as digests: run as a program, one line of JSON for each run and design.

    NUMBA_DISABLE_JIT=1 python digests.py RUN [DESIGN ...]

RUN is a recorded run, or ``case/NAME`` for a case of the conformance kit. The interpreted half of
``test_interpreted_equals_compiled``.
"""

from __future__ import annotations

import hashlib
import json
import sys

from shadowmmu.engine.executor import Executor
from shadowmmu.engine.setup import Machine
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.formats.runs import bundled_run
from shadowmmu.lab.agreement import dump_lines
from shadowmmu.machine.counters import counter_names
from shadowmmu.machine.state import image_digest
from shadowmmu.verify.cases import conformance_cases


def digest(name: str, design: str) -> dict[str, object]:
    """Memory image, dumps and counters of one bundled run under one design."""
    if name.startswith("case/"):
        case = {case.name: case for case in conformance_cases()}[name.removeprefix("case/")]
        text, bits = case.script, case.ipa_limit_bits
    else:
        run = bundled_run(name)
        text, bits = run.scenario_text(), run.ipa_limit_bits
    scenario = parse_scenario(text, name)
    machine = Machine(ipa_limit_bits=bits, granule=scenario.granule, logged=True)
    executor = Executor(scenario, design, machine)
    executor.run()
    lines = "\n".join(line for dump in executor.dumps for line in dump_lines(dump))
    counts = zip(counter_names(), executor.state.count.tolist(), strict=True)
    return {
        "image": image_digest(executor.state),
        "dumps": hashlib.sha256(lines.encode()).hexdigest(),
        "counters": {key: value for key, value in counts if value},
    }


if __name__ == "__main__":
    answers = {design: digest(sys.argv[1], design) for design in sys.argv[2:]}
    sys.stdout.write(json.dumps(answers))

"""``docs/designs.md`` says what the catalogue, the modules and the model say."""

from __future__ import annotations

import pytest
from designs_page import PATH, page

from shadowmmu.compiled import INTERPRETED
from shadowmmu.designs.interface import CATALOGUE


def test_every_design_has_its_section_in_order() -> None:
    headings = [line[3:] for line in PATH.read_text(encoding="utf-8").splitlines() if line.startswith("## ")]
    assert headings == ["Measured", *CATALOGUE]


@pytest.mark.skipif(INTERPRETED, reason="the figures are the same in both modes; once is enough")
def test_the_page_is_what_the_modules_and_the_model_say() -> None:
    assert PATH.read_text(encoding="utf-8") == page()

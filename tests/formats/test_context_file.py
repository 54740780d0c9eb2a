"""The context file: what it holds, and what it refuses with the line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shadowmmu.arch.context import C_TCR_EL1, C_TTBR0_EL1, FEATURES
from shadowmmu.errors import InputError
from shadowmmu.formats.context import read_context, read_setting


def test_registers_words_and_machine(tmp_path: Path) -> None:
    text = "# one line\npa-bits 44\nfeatures XNX HAF\nTCR_EL1 0x19  # T0SZ\n"
    text += "TTBR0_EL1 = 4096\nword 0x1008 0x2003\n"
    found = read_context(text, "a.ctx", tmp_path, {"TTBR0_EL1": 0x8000})
    assert (int(found.row[C_TCR_EL1]), int(found.row[C_TTBR0_EL1])) == (0x19, 0x8000)
    assert (found.memory.size, int(found.memory[0x1008 >> 3])) == (0x1010 >> 3, 0x2003)
    assert found.machine.pa_bits == 44
    assert int(found.machine.features) == FEATURES.encode(XNX=1, HAF=1)


def test_an_image_lies_beside_the_context_file(tmp_path: Path) -> None:
    np.array([7, 8], "<u8").tofile(tmp_path / "tables.bin")
    found = read_context("image tables.bin 0x4000\nword 0x4008 9\n", "a.ctx", tmp_path, {})
    assert found.memory[0x4000 >> 3 :].tolist() == [7, 9]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("TCR_EL9 1", "a.ctx:2: read 'TCR_EL9 1', expected a register"),
        ("TCR_EL1 one", "a.ctx:2: read 'one', expected a number"),
        ("TCR_EL1 0x10000000000000000", "a.ctx:2: read '0x10000000000000000', expected a number"),
        ("VTCR_EL2 2", "a.ctx:2: read 'VTCR_EL2', expected each register once"),
        ("word 0x4 1", "a.ctx:2: read '0x4', expected a physical address"),
        ("word 0x40000000000 1", "a.ctx:2: read '0x40000000000', expected a physical address"),
        ("word 8", "a.ctx:2: read '8', expected word PA VALUE"),
        ("image gone.bin 0", "a.ctx:2: read 'gone.bin', expected a file"),
        ("image 0", "a.ctx:2: read '0', expected image FILE PA"),
        ("pa-bits 41", "a.ctx:2: read '41', expected pa-bits"),
        ("features XNY", "a.ctx:2: read 'XNY', expected some of"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_context(f"VTCR_EL2 1\n{line}\n", "a.ctx", tmp_path, {})
    assert str(caught.value).startswith(message)


def test_settings_of_the_command_line() -> None:
    assert read_setting("TCR_EL1=0x19") == ("TCR_EL1", 0x19)
    for bad in ("TCR_EL1", "TCR_EL1=", "TCR=1"):
        with pytest.raises(InputError):
            read_setting(bad)

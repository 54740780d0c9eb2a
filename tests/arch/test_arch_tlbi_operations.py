"""Encodings and names of the TLBIs, against two assemblers where they are installed and recorded words."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shadowmmu.arch.tlbi_operations import (
    IPA,
    OPERATIONS,
    RULE,
    TlbiOperation,
    decode,
    operation,
    operation_at,
    operation_of_code,
    scope_table,
)
from shadowmmu.errors import InputError

RECORDED = Path(__file__).with_name("tlbi_encodings.txt")
NO_OPERAND = re.compile(r"^(VMALLE1|VMALLS12E1|ALLE[12])(IS|OS)?(NXS)?$")
GAS, GNU_OBJDUMP, LLVM_MC = "aarch64-linux-gnu-as", "aarch64-linux-gnu-objdump", "llvm-mc"


def recorded() -> dict[str, int]:
    """Instruction words by mnemonic, as the assemblers gave them."""
    lines = (line.split() for line in RECORDED.read_text().splitlines() if not line.startswith("#"))
    return {name.upper(): int(word, 16) for name, word in lines}


def with_x0(each: TlbiOperation) -> int:
    return each.instruction(31 if each.operand is None else 0)


def test_every_declared_operation_is_recorded_and_the_reverse() -> None:
    assert {each.name: with_x0(each) for each in OPERATIONS} == recorded()
    assert len(recorded()) == 21 * 3 * 2


def test_name_encoding_and_code_lead_back_to_the_operation() -> None:
    for name, word in recorded().items():
        found = decode(word)
        assert found is not None
        assert found.name == name
        assert operation(name.lower()) is found
        assert operation_at(*found.encoding()) is found
        assert operation_of_code(found.code) is found


def test_which_operations_take_a_register() -> None:
    for each in OPERATIONS:
        assert (each.operand is None) == bool(NO_OPERAND.match(each.name))
        assert each.ranged == (each.operand is not None and "SCALE" in each.operand.fields)


def test_el1_may_execute_what_only_stage_1_of_its_own_regime_needs() -> None:
    stage1 = re.compile(r"^(VMALL|R?VA{1,2}L?|ASID)E1(IS|OS)?(NXS)?$")
    for each in OPERATIONS:
        assert each.el1_may_execute == bool(stage1.match(each.name)), each.name


def test_the_code_says_what_the_name_says() -> None:
    for each in OPERATIONS:
        rule = RULE.decode(each.code)
        assert rule["NXS"] == each.name.endswith("NXS")
        assert rule["DOMAIN"] == (1 if "IS" in each.name else 2 if "OS" in each.name else 0)
        assert rule["LAST"] == bool(re.search(r"(A|S2)LE[12]", each.name)), each.name
        assert rule["EL2"] == ("E2" in each.name)
        assert (rule["WHAT"] == IPA) == ("IPAS2" in each.name)


@pytest.mark.parametrize(
    "word",
    [
        0xD508_7500,  # IC IVAU's neighbourhood: CRn 7
        0xD50E_871F,  # TLBI ALLE3
        0xD508_8780,  # op2 of no VA form
        0xD528_8720,  # SYSL
        0xD500_8720,  # op0 0
        0x0000_0000,
    ],
)
def test_other_instructions_are_none_of_these(word: int) -> None:
    assert decode(word) is None


def test_unknown_names_and_codes_are_refused() -> None:
    with pytest.raises(InputError, match=r"'VAE3': expected one of VMALLE1, .*, then IS or OS"):
        operation("VAE3")
    with pytest.raises(InputError, match="0x1ff is none"):
        operation_of_code(0x1FF)


def test_the_scope_table_has_a_row_a_family() -> None:
    rows = scope_table().splitlines()[2:]
    assert [row.split(" ")[1] for row in rows] == list(dict.fromkeys(each.family for each in OPERATIONS))
    assert "| RVALE1 | VA range | 1 | of the ASID, and global | kept | 6.5, 2.5, 5.5 |" in rows


def mnemonics(operations: list[TlbiOperation]) -> str:
    return "".join(f"tlbi {each.name.lower()}{', x0' if each.operand else ''}\n" for each in operations)


@pytest.mark.skipif(not shutil.which(LLVM_MC), reason="llvm-mc is not installed")
def test_llvm_assembles_the_same_words() -> None:
    shown = subprocess.run(
        [LLVM_MC, "-triple=aarch64", "-mattr=+v8.7a,+tlb-rmi,+xs", "-show-encoding"],
        input=mnemonics(list(OPERATIONS)),
        capture_output=True,
        text=True,
    )
    if "unknown target triple" in shown.stderr or "unable to get target" in shown.stderr:
        pytest.skip("llvm-mc was built without AArch64")
    assert shown.returncode == 0, shown.stderr
    found = [
        int.from_bytes(bytes(int(byte, 16) for byte in quad.split(",")), "little")
        for quad in re.findall(r"encoding: \[(.*)\]", shown.stdout)
    ]
    assert found == [with_x0(each) for each in OPERATIONS]


@pytest.mark.skipif(not (shutil.which(GAS) and shutil.which(GNU_OBJDUMP)), reason="no cross assembler")
def test_gnu_as_assembles_the_same_words(tmp_path: Path) -> None:
    known = [each for each in OPERATIONS if not each.nxs]
    march, chosen = "armv8.7-a", known
    if assembled("armv8.7-a+xs", list(OPERATIONS), tmp_path):  # binutils before 2.41 has no nXS names
        march, chosen = "armv8.7-a+xs", list(OPERATIONS)
    assert assembled(march, chosen, tmp_path)
    shown = subprocess.run(
        [GNU_OBJDUMP, "-d", tmp_path / "tlbi.o"], check=True, capture_output=True, text=True
    ).stdout
    found = [int(word, 16) for word in re.findall(r"^\s+[0-9a-f]+:\s+([0-9a-f]{8})", shown, re.MULTILINE)]
    assert found == [with_x0(each) for each in chosen]


def assembled(march: str, operations: list[TlbiOperation], folder: Path) -> bool:
    """Whether GNU as takes them all with this architecture; the object is left in ``folder``."""
    command = [GAS, f"-march={march}", "-o", str(folder / "tlbi.o"), "-"]
    return subprocess.run(command, input=mnemonics(operations).encode(), capture_output=True).returncode == 0

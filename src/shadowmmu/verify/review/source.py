"""Objections about the source itself: names, provenance, surface, where a decision is taken.

Reads the module of a design, as text. What is checked is what the text says, so it is said of our text.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import product
from pathlib import Path

from shadowmmu.designs.interface import CATALOGUE
from shadowmmu.designs.own_file import MODULES
from shadowmmu.verify.review.result import Result, holds, not_applicable, refuted

PROVENANCE = re.compile(r"\b20\d\d\b|Linux \d|this project|powerpc|x86|s390|never posted|the template")
FORBIDDEN = re.compile(r"pollut|\bshadow_ipa\b|\bgpa\b", re.IGNORECASE)
QUOTED = re.compile(r"``[^`]*``")
NAMELESS = {"addr", "address", "ipa_addr", "gpa"}
POINTER = {"rbtree_2024": "kvm_is_l1_using_shadow_s2"}
"""Designs whose patch asks the loaded MMU who runs, by the function that does."""


def module_text(design: str) -> str:
    """The source of the design's module."""
    if design in MODULES:
        return Path(str(MODULES[design].__file__)).read_text(encoding="utf-8")
    return (files("shadowmmu") / "designs" / f"{design}.py").read_text(encoding="utf-8")


def provenance(design: str) -> Result:
    """1: the design says where it was read or who proposed it, and when."""
    docstring = ast.get_docstring(ast.parse(module_text(design))) or ""
    first = f"{CATALOGUE[design].origin}. {docstring.partition('Idea:')[0]}"
    found = sorted(set(PROVENANCE.findall(first)))
    if not found:
        return refuted(f"'{CATALOGUE[design].origin}' names no version, date or tree")
    return holds(f"{CATALOGUE[design].origin}: {', '.join(found)}")


def hyp_context(design: str) -> Result:
    """4: whether L1 runs as hypervisor follows from its registers, not from the MMU that is loaded.

    The states are those of HCR_EL2.{E2H,TGE} and PSTATE.M at EL2 or EL1, each with the MMU loaded before
    the last change of context still loaded, or none. What a patch asks is taken from its text.
    """
    if design in POINTER:
        wrong = []
        for e2h, tge, el2, loaded in product((0, 1), (0, 1), (0, 1), ("canonical", "shadow", "none")):
            hypervisor = bool(el2 or (e2h and tge))  # is_hyp_ctxt(), Linux 7.3.4
            by_pointer = loaded == "canonical"
            if hypervisor != by_pointer:
                wrong.append(f"E2H={e2h} TGE={tge} EL{1 + el2}, {loaded} MMU loaded: says {by_pointer}")
        return refuted(f"{POINTER[design]}() is wrong in {len(wrong)} of 24 states", wrong)
    read = sorted(
        {
            node.attr if isinstance(node, ast.Attribute) else node.id
            for node in ast.walk(ast.parse(module_text(design)))
            if (isinstance(node, ast.Attribute) and node.attr == "vcpus")
            or (isinstance(node, ast.Name) and node.id.startswith("V_"))
        }
    )
    if read:
        return refuted(f"its module reads vCPU state: {', '.join(read)}")
    return holds("is given the MMU of the fill; its module reads no vCPU state")


def surface(design: str) -> Result:
    """9: nothing outside the designs calls the lookups of this one."""
    if design in MODULES:
        return not_applicable("a file of its own: nothing else can import it")
    callers = []
    for path, imports in imported_modules():
        if path.startswith(("designs/", "verify/")):
            continue
        callers += [f"{path}:{line}" for name, line in imports if name == f"shadowmmu.designs.{design}"]
    if callers:
        return refuted(f"imported by {', '.join(callers)}", callers)
    return holds("only the dispatch reaches it (its check() is read by verify)")


@cache
def imported_modules() -> list[tuple[str, list[tuple[str, int]]]]:
    """Every module of the package by path, with the modules it imports from and the lines."""
    found = []
    for path, text in sources(files("shadowmmu"), ""):
        nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
        found.append((path, [(node.module or "", node.lineno) for node in nodes]))
    return found


def sources(folder: Traversable, at: str) -> list[tuple[str, str]]:
    """Path and text of every module below ``folder``."""
    found = []
    for entry in folder.iterdir():
        if entry.is_dir():
            found += sources(entry, f"{at}{entry.name}/")
        elif entry.name.endswith(".py"):
            found.append((f"{at}{entry.name}", entry.read_text(encoding="utf-8")))
    return sorted(found)


def names(design: str) -> Result:
    """27: addresses are called by their space, and no word blames the guest."""
    text = module_text(design)
    bad = [
        f"line {number}: {line.strip()}"
        for number, line in enumerate(text.splitlines(), 1)
        if FORBIDDEN.search(QUOTED.sub("", line))
    ]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            bad += [
                f"line {node.lineno}: {node.name}({argument.arg})"
                for argument in node.args.args
                if argument.arg in NAMELESS
            ]
    if bad:
        return refuted(f"{len(bad)} names do not say their space", bad)
    return holds("canonical and nested addresses are named so")

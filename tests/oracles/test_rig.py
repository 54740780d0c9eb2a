"""The rig's driver: the archive, the console taken apart, scripts made ready; and the rig itself, if any."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from shadowmmu.errors import InputError, UndeterminedError
from shadowmmu.events.scenario import parse_scenario
from shadowmmu.events.words import ScenarioError
from shadowmmu.formats.answer import parse_answer
from shadowmmu.formats.runs import bundled_run
from shadowmmu.oracles.rig import Rig, check_script, in_model, missing_parts, observed, rig_folder, traced
from shadowmmu.oracles.rig.archive import archive
from shadowmmu.oracles.rig.console import split_console
from shadowmmu.oracles.rig.locate import PARTS, sources

TINY = (
    "mem 64M\nstart base 0 0\ns2 new 1\ncode\nmap 0x80000000 0x41000000 4k 3 rw\ntouch w 0x80000000 4096 1\n"
)
MISSING = missing_parts(rig_folder())
needs_rig = pytest.mark.skipif(bool(MISSING), reason=f"no rig here (make rig): {', '.join(MISSING)}")
BOOT = "RIG up 0.16 7.3.4\n[    0.033799] kvm [1]: IPA Size Limit: 40 bits\n"


def members(image: bytes) -> dict[str, tuple[int, bytes]]:
    """Mode and content by name, read by the format's own arithmetic."""
    found, at = {}, 0
    while at < len(image):
        assert image[at : at + 6] == b"070701"
        numbers = [int(image[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, length = numbers[1], numbers[6], numbers[11]
        name = image[at + 110 : at + 110 + length - 1].decode()
        at = (at + 110 + length + 3) & ~3
        found[name] = mode, image[at : at + size]
        at = (at + size + 3) & ~3
    return found


def test_an_archive_has_folders_before_what_is_in_them() -> None:
    found = members(archive({"init": b"x", "bin/sh": b"yy"}, {"rig/a/b": b"zzz"}))
    names = list(found)
    assert names[-1] == "TRAILER!!!"
    for name in names[:-1]:
        parent = name.rpartition("/")[0]
        assert not parent or names.index(parent) < names.index(name)
    assert found["init"] == (0o100755, b"x")
    assert found["rig/a/b"] == (0o100644, b"zzz")
    assert found["rig/a"][0] == 0o040755
    assert found["dev/console"][0] == 0o020600


def test_a_console_with_two_scripts_gives_two_answers() -> None:
    text = (
        f"{BOOT}RIG run 0000\n> nop\nVMM done\nRIG vmm rc=0\n"
        "RIG run 0001\n> nop\n> nop\nVMM done\nRIG vmm rc=0\n[    1.000000] WARNING: at x+0x1/0x2\n"
        "RIG down 1.21\n[    1.217785] reboot: Power down\n"
    )
    one, two = (parse_answer(answer) for answer in split_console(text).values())
    assert (len(one.steps), len(two.steps)) == (1, 2)
    assert (one.warnings, len(two.warnings)) == ((), 1)
    assert one.ipa_limit_bits == two.ipa_limit_bits == 40


def test_a_boot_that_ended_early_gives_what_there_is() -> None:
    answers = split_console(f"{BOOT}RIG run 0000\n> nop\nVMM done\nRIG vmm rc=0\nRIG run 0001\n> n")
    assert list(answers) == ["0000", "0001"]
    assert "VMM done" not in answers["0001"]
    assert split_console("no kernel here\n") == {}


def test_a_command_of_the_model_only_is_refused_with_its_line() -> None:
    with pytest.raises(ScenarioError, match="x:7: read 'punch', expected a command that a kernel has"):
        check_script(TINY + "punch 0x41000000 4k\n", "x")


def test_commands_of_the_rig_only_pass_and_keep_line_numbers() -> None:
    script = TINY + "at s12e1r 0x80000000\nload2\n"
    assert len(check_script(script, "x").events) == len(check_script(TINY, "x").events) + 1
    assert in_model(TINY)
    assert not in_model(script)
    with pytest.raises(ScenarioError, match="x:9:"):
        check_script(script + "touch q 0x80000000\n", "x")


def test_an_observed_script_shows_every_step_and_stays_in_the_language() -> None:
    scenario = parse_scenario(observed(TINY + "dump mine\ntrace mine\nquit\nnop\n", counts=True), "x")
    assert scenario.labels == ("0", "s0", "1", "s1", "2", "s2", "3", "s3")
    assert scenario.lines[-2:] == ("trace all", "")
    assert "hist" in scenario.lines[-3]
    assert traced(traced(TINY)) == traced(TINY) == TINY + "trace all\n"


def test_a_folder_that_is_no_rig_is_told_part_by_part(tmp_path: Path) -> None:
    (tmp_path / "vmm").write_text("")
    (tmp_path / "qemu").write_text("")
    missing = missing_parts(tmp_path)
    assert len(missing) == len(PARTS) - 1
    assert "qemu is not executable" in missing
    with pytest.raises(UndeterminedError, match="Image"):
        Rig.find(tmp_path)


def test_an_ipa_limit_the_rig_cannot_have_is_bad_input(tmp_path: Path) -> None:
    for name in PARTS:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(InputError, match="expected one of 36, 40, 42, 44, 48"):
        Rig.find(tmp_path, ipa_limit_bits=41).run(TINY)


def test_a_rig_that_does_not_boot_is_undetermined(tmp_path: Path) -> None:
    for name in PARTS:
        (tmp_path / name).write_text("#!/bin/sh\necho no machine >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(UndeterminedError, match="did not boot:\nno machine"):
        Rig.find(tmp_path).run(TINY)


def test_the_build_says_what_is_missing(tmp_path: Path) -> None:
    folder = sources()
    if folder is None:
        pytest.skip("an installed package: the rig's sources are not here")
    command = [str(folder / "build.sh"), str(tmp_path / "rig")]
    environment = {"PATH": "/usr/bin:/bin", "CROSS": "no-such-compiler-"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert "no-such-compiler-gcc" in done.stderr
    wrong = subprocess.run(command[:1], env=environment, capture_output=True, text=True, check=False)
    assert wrong.returncode == 4


@needs_rig
@pytest.mark.slow
def test_the_rig_repeats_a_recorded_run() -> None:
    run = bundled_run("hello/hello")
    live = Rig.find(ipa_limit_bits=run.ipa_limit_bits).run(run.scenario_text(), "hello")
    assert live.answer().dumps == run.answer().dumps


@needs_rig
@pytest.mark.slow
def test_a_script_that_does_not_end_is_undetermined() -> None:
    script = TINY + "poke 0x40100010 0x50000003\nat s12e1r 0x80000000\n"
    with pytest.raises(UndeterminedError, match="did not come to its end"):
        Rig.find(ipa_limit_bits=40, script_seconds=1).run(script)

"""The table of mutants fits the code that it changes."""

from pathlib import Path

from tests.mutants.__main__ import ROOT
from tests.mutants.table import MUTANTS


def test_every_mutant_changes_code_that_is_there() -> None:
    texts = {file: (ROOT / file) for file in {mutant.file for mutant in MUTANTS}}
    found = {file: path.read_text() if path.exists() else "" for file, path in texts.items()}
    assert [m.name for m in MUTANTS if m.old not in found[m.file]] == []


def test_every_mutant_is_looked_for_by_tests_that_are_there() -> None:
    tests = {test for mutant in MUTANTS for test in mutant.tests}
    assert [test for test in sorted(tests) if not Path(ROOT, test).exists()] == []

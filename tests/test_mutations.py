"""The faults of `benchmarks.mutations` still fit the source: their texts are there, once."""

import ast
import shlex

import pytest

from benchmarks.mutations import FAULTS, ROOT, occurrences


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_the_text_is_there_once(fault):
    assert occurrences(fault) == 1, f"{fault.file}: {fault.text!r}; mend benchmarks/mutations.py"
    path = ROOT / "jaxsvd" / fault.file
    ast.parse(path.read_text().replace(fault.text, fault.wrong))
    assert (ROOT / shlex.split(fault.tests)[0]).is_file()


def test_there_are_twenty_and_each_has_a_name():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20

"""The list of mutants that survive is one of this code."""

import pytest

import mutations


@pytest.mark.parametrize("module", mutations.TESTS)
def test_every_survivor_is_a_mutant_of_this_code_with_a_reason(module):
    """An edit that takes one away, or adds lines nobody has tried, wants `make mutants`."""
    keys = {mutant.key for mutant in mutations.mutants(module)}
    page = mutations.PAGE.read_text(encoding="utf-8")
    entries = mutations.ENTRY.findall(page)
    listed = {entry[:4]: entry[4] for entry in entries if entry[0] == module}
    assert set(listed) <= keys
    assert all(
        len(reason) > 20 and "NO REASON" not in reason for reason in listed.values()
    )
    counts = f"| {module}.py | {len(keys)} | {len(keys)} | {len(keys) - len(listed)} |"
    assert f"{counts} {len(listed)} |" in page

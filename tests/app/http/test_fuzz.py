"""A round of `python benchmarks/fuzz.py`, with the same files each time."""

from __future__ import annotations

from benchmarks.fuzz import fuzz


def test_mangled_files_are_refused_in_words_or_read_as_others_read_them() -> None:
    tried, findings = fuzz(250, files_per_round=60, rounds=1)
    assert findings == []
    assert len(tried) == 4
    for kind, each in tried.items():
        assert each.counts["tried"] >= 20, f"{kind}: {each.counts}"

"""The fuzz script, in small."""

import sys

from tools import fuzz


def test_odd_input_is_read_as_it_is_or_refused_in_a_line(monkeypatch, capsys):
    counts = {"specifications": 200, "arguments": 40, "stores": 40, "caches": 40, "folders": 12}
    counts |= {"tables": 24, "seed": 1}
    sizes = [text for name, count in counts.items() for text in (f"--{name}", str(count))]
    monkeypatch.setattr(sys, "argv", ["fuzz.py", *sizes])
    assert not fuzz.main(), capsys.readouterr().out

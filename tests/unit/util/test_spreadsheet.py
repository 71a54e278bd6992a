"""What strangers wrote, in a table that a spreadsheet opens: never run, and read again as it was."""

from __future__ import annotations

import pytest

from selftrain._util.spreadsheet import escape, unescape
from selftrain.cli.printing import encoder
from selftrain.data.tables import open_table

FORMULAS = ("=1+1", "-x", "@me", "'=x", "''-1", "a;=b", "x\n-1", "-1+2", "+1 2")
NUMBERS = ("-1", "+1.5", "-1e5", "-1,000.5")


@pytest.mark.parametrize("cell", [*FORMULAS, *NUMBERS, "'-1", "plain", ""])
def test_a_cell_comes_back(cell):
    assert unescape(escape(cell)) == cell
    assert (escape(cell) == cell) == (cell in ("plain", "", *NUMBERS))


def test_predictions_as_a_table_are_read_as_they_were_made(tmp_path):
    records = [{"id": one, "label": "-1", "probabilities": {"-1": "0.9", "1": "0.1"}} for one in FORMULAS]
    (tmp_path / "out.csv").write_text("".join(f"{line}\n" for line in encoder("out.csv")(records, True)))
    table = open_table(tmp_path / "out.csv")
    told = [
        {"id": one, "label": "-1", "probabilities.-1": "0.9", "probabilities.1": "0.1"} for one in FORMULAS
    ]
    assert [row.fields for row in table.rows] == told
    assert '"-1"' in (tmp_path / "out.csv").read_text()

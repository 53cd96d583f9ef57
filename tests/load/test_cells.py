"""What the loads are measured with is itself held to what it says."""

from tests.load.cells import ALL, covering, pairs_of
from tests.load.table import Figures, Table


def test_in_the_few_cells_every_two_values_meet() -> None:
    few = covering(ALL)
    assert set().union(*map(pairs_of, few)) == set().union(*map(pairs_of, ALL))
    assert len(few) <= 13 < len(ALL) == 96


def test_a_row_tells_the_worst_of_its_runs_and_what_was_discarded() -> None:
    table = Table()
    table.add("flood", Figures(100, 60, 70, worst_reply=0.002, wait=0.1), [])
    table.add("flood", Figures(100, 71, 70, opened=1, worst_reply=0.004), ["too many passed"])
    table.discard("flood")
    table.discard("another")
    flood, another = table.rows()
    assert flood == {
        "load": "flood", "runs": "2", "discarded": "1", "asked": "200", "passed": "71 of 70",
        "503": "0", "degraded": "0", "opened": "1", "worst reply": "4 ms",
        "longest wait": "100 ms", "as promised": "NO, in 1 of 2",
    }  # fmt: skip
    assert another["as promised"] == "not measured"

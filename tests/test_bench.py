"""The benchmark checks before it times, and its rows say where they were measured."""

import csv

import pytest
import torch

from equimol import bench
from equimol.tensor_products import TENSOR_PRODUCTS


@pytest.fixture(scope="module")
def rows():
    return bench.tensor_products([1], channels=4, batch=50, quick=True)


def test_every_product_and_the_peer_are_measured_in_both_modes(rows):
    pytest.importorskip("e3nn.o3")
    names = [*TENSOR_PRODUCTS, "e3nn"]
    assert {(row["product"], row["mode"]) for row in rows} == {(name, mode) for name in names for mode in bench.MODES}
    for row in rows:  # each product has a peer with the same couplings
        assert any((r["product"], r["couplings"]) == ("e3nn", row["couplings"]) for r in rows)
    assert all(row["median_ms"] > 0 for row in rows)


def test_the_peer_is_one_times_as_fast_as_itself(rows):
    pytest.importorskip("e3nn.o3")
    assert {row["e3nn_over_this"] for row in rows if row["product"] == "e3nn"} == {1.0}


def test_work_and_roofline_are_those_of_the_forward_product(rows):
    for row in rows:
        if row["mode"] == "forward" and row["product"] != "e3nn":
            assert row["megaflop"] > 0 and row["megabyte"] > 0 and row["roofline_fraction"] > 0
        else:
            assert row["megaflop"] == row["roofline_fraction"] == ""
        assert row["us_per_degree_of_freedom"] == pytest.approx(1e3 * row["median_ms"] / row["degrees_of_freedom"], rel=1e-2, abs=2e-3)


@pytest.mark.parametrize("setting", ["mimo", "simo", "siso"])
def test_the_settings_of_the_price_of_freedom_leave_out_what_has_no_such_coupling(setting):
    rows = bench.tensor_products([1], setting=setting, channels=1, batch=10, modes=["forward"], quick=True)
    names = {row["product"] for row in rows}
    assert ("gaunt_grid" in names) == (setting != "siso")  # 1 x 1 -> 1 is the cross product
    assert {"clebsch_gordan", "complete_grid", "bracket_grid"} <= names


def test_rows_carry_device_threads_and_versions(rows):
    assert rows[0]["threads"] == torch.get_num_threads()
    assert rows[0]["torch"] == torch.__version__
    assert rows[0]["device"]


def test_a_wrong_product_is_not_timed(monkeypatch):
    class Wrong(TENSOR_PRODUCTS["clebsch_gordan"]):
        def product(self, x, y, weights):
            return 1.001 * super().product(x, y, weights)

    monkeypatch.setitem(bench.TENSOR_PRODUCTS, "clebsch_gordan", Wrong)
    with pytest.raises(RuntimeError, match="clebsch_gordan at lmax 1 differs from the float64 reference"):
        bench.tensor_products([1], channels=2, batch=10, quick=True)


def test_rows_are_appended_below_one_header(tmp_path, rows):
    path = tmp_path / "results" / "rows.csv"
    bench.append_rows(path, rows)
    bench.append_rows(path, rows)
    with path.open() as file:
        assert len(list(csv.DictReader(file))) == 2 * len(rows)


def test_rows_of_another_shape_are_refused(tmp_path, rows):
    path = tmp_path / "rows.csv"
    path.write_text("some,thing\n1,2\n")
    with pytest.raises(ValueError, match="move the file away"):
        bench.append_rows(path, rows)
    assert path.read_text() == "some,thing\n1,2\n"


def test_table_shows_the_ratio_to_the_peer(capsys, rows):
    bench.print_table(rows)
    printed = capsys.readouterr().out
    assert "gaunt_grid" in printed and "x)" in printed

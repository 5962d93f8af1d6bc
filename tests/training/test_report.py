"""The report page: it shows what the run folder holds, says what it lacks, and never needs the network."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from equimol.training.report import read_log, table, write_report

LOG = """step,epoch,seconds,lr,loss,loss_energy,loss_forces,valid_energy_rmse_mev,valid_forces_rmse_mev_per_angstrom
1,0,1.5,0.01,12.0,2.0,10.0,,
2,0,3.0,0.01,6.0,1.0,5.0,0.02,0.4
3,1,,0.01,3.0,0.5,,,
4,1,6.0,0.005,1.5,0.25,1.25,0.01,0.2
"""


def predictions(structures: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Reference values and predictions with an error of about 0.02 eV and 0.05 eV/Å."""
    random = np.random.default_rng(seed)
    natoms = random.integers(1, 6, structures)
    energy = -10.0 * natoms + random.normal(size=structures)
    forces = random.normal(size=(natoms.sum(), 3))
    return {
        "natoms": natoms,
        "energy_true": energy,
        "energy_pred": energy + 0.02 * random.normal(size=structures),
        "forces_true": forces,
        "forces_pred": forces + 0.05 * random.normal(size=forces.shape),
    }


@pytest.fixture
def run_dir(tmp_path):
    """A run folder without stress, and with predictions of the test split only, which keeps the page quick to draw."""
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "config.yaml").write_text("model: mace\npreset: small\ncutoff: 5.0\nout: runs/<first>\n")
    (folder / "data.txt").write_text("energy: 100 frames (key 'REF_energy')\n")
    (folder / "log.csv").write_text(LOG)
    row = {"energy_mae_mev_per_atom": 1.234, "energy_rmse_mev_per_atom": 2.5, "forces_mae_mev_per_angstrom": 30.1, "forces_cosine": 0.998}
    (folder / "summary.json").write_text(json.dumps({"parameters": 12345, "frames": {"train": 80, "valid": 20, "test": 20}}))
    (folder / "errors.json").write_text(json.dumps(dict.fromkeys(("train", "valid", "test"), row)))
    np.savez(folder / "predictions_test.npz", **predictions(20))
    return folder


class Checker(HTMLParser):
    """Collects ids and references of a page and insists that elements are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.references = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag != "meta":
            self.open.append(tag)
        self.handle_attributes(attrs)

    def handle_startendtag(self, tag, attrs):
        self.handle_attributes(attrs)

    def handle_attributes(self, attrs):
        for key, value in attrs:
            if key == "id":
                self.ids.append(value)
            elif key in ("src", "href", "xlink:href"):
                self.references.append(value)
            self.references += re.findall(r"url\((.*?)\)", value or "")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    return checker


def test_the_page_is_well_formed_and_refers_only_to_itself(run_dir):
    page = write_report(run_dir).read_text()
    checker = check(page)
    assert len(checker.ids) == len(set(checker.ids))
    assert checker.references
    assert {reference.removeprefix("#") for reference in checker.references} <= set(checker.ids)
    assert "@import" not in page and "<script" not in page


def test_the_page_shows_errors_curves_parity_and_settings(run_dir):
    for split in ("train", "valid"):
        np.savez(run_dir / f"predictions_{split}.npz", **predictions(20))
    page = write_report(run_dir).read_text()
    for text in ("1.23", "meV/atom", "forces MAE, test", "Force components", "Energy per atom", "preset: small", "REF_energy"):
        assert text in page
    assert "class=missing" not in page
    assert page.count("<svg") == 4 + 3 * 2  # loss, two validation errors, learning rate; energy and forces of three splits


def test_text_from_the_run_is_escaped(run_dir):
    assert "out: runs/&lt;first&gt;" in write_report(run_dir).read_text()


def test_figures_take_their_colours_from_the_page(run_dir):
    page = write_report(run_dir).read_text()
    assert "#010a" not in page
    for variable in set(re.findall(r"var\((--\w+)\)", page)) - {"--width"}:
        assert page.count(f"{variable}:") == 2  # light and dark


def test_an_empty_run_folder_gives_a_page_that_says_what_is_missing(tmp_path):
    page = write_report(tmp_path).read_text()
    check(page)
    for text in ("No test split", "No valid split", "No log.csv", "No errors.json", "No config.yaml"):
        assert text in page


def test_without_a_test_split_the_headline_is_that_of_validation_and_says_so(run_dir):
    (run_dir / "predictions_test.npz").rename(run_dir / "predictions_valid.npz")
    for name, key in (("errors.json", None), ("summary.json", "frames")):
        content = json.loads((run_dir / name).read_text())
        del (content[key] if key else content)["test"]
        (run_dir / name).write_text(json.dumps(content))
    page = write_report(run_dir).read_text()
    assert "forces MAE, valid" in page
    assert "No test split" in page


def test_without_a_run_folder_there_is_no_report(tmp_path):
    with pytest.raises(ValueError, match="run folder"):
        write_report(tmp_path / "absent")


@pytest.mark.parametrize("name", ["errors.json", "predictions_test.npz"])
def test_a_damaged_file_costs_only_its_own_section(run_dir, name):
    content = (run_dir / name).read_bytes()
    (run_dir / name).write_bytes(content[: len(content) // 2])
    page = write_report(run_dir).read_text()
    assert f"{name} cannot be read" in page
    assert "<b>Learning rate</b>" in page


def test_predictions_of_other_structures_are_refused(run_dir):
    arrays = predictions(20)
    np.savez(run_dir / "predictions_test.npz", **(arrays | {"forces_pred": arrays["forces_pred"][:-1]}))
    assert "forces must have" in write_report(run_dir).read_text()


def test_absent_labels_are_left_out(run_dir):
    arrays = predictions(20)
    arrays["energy_true"][:] = np.nan
    arrays["forces_true"][:4] = np.nan
    np.savez(run_dir / "predictions_test.npz", **arrays)
    page = write_report(run_dir).read_text()
    assert "no labels in this split" in page
    assert f"{arrays['forces_true'].size - 12:,} values" in page


def test_stress_is_plotted_where_it_was_predicted(run_dir):
    stress = np.random.default_rng(0).normal(size=(20, 3, 3))
    np.savez(run_dir / "predictions_test.npz", **predictions(20), stress_true=stress, stress_pred=stress + 0.01)
    assert "Stress components" in write_report(run_dir).read_text()


def test_large_sets_are_drawn_as_counts_and_stay_small(run_dir):
    np.savez(run_dir / "predictions_test.npz", **predictions(30_000))
    assert write_report(run_dir).stat().st_size < 3_000_000


def test_the_worst_structure_comes_first_under_its_source(run_dir):
    arrays = predictions(20)
    first_atom = int(arrays["natoms"][:7].sum())
    arrays["forces_pred"][first_atom] += 5.0
    np.savez(run_dir / "predictions_test.npz", **arrays, source=np.array([f"data.xyz:{i}" for i in range(20)]))
    page = write_report(run_dir).read_text()
    assert re.search(r"<tbody><tr><td>data.xyz:7</td>", page)


def test_a_log_keeps_its_numbers_in_the_order_of_steps_and_has_nan_where_a_cell_is_empty(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss,note,valid_forces_rmse\n2,2.0,a,0.5\n1,3.0,b,\n3,1.0\n,9.0,c,1.0\n")
    log = read_log(tmp_path / "log.csv", [])
    np.testing.assert_array_equal(log["step"], [1, 2, 3])
    np.testing.assert_array_equal(log["loss"], [3, 2, 1])
    np.testing.assert_array_equal(log["valid_forces_rmse"], [np.nan, 0.5, np.nan])


@pytest.mark.parametrize(
    "text", ["step,loss\n", "step,seconds,loss\n1,,nan\n2,,inf\n", "step,seconds,loss\n1,0,0.5\n", "loss\n1\n", "\0\n"]
)
def test_a_log_with_little_in_it_is_no_error(tmp_path, text):
    (tmp_path / "log.csv").write_text(text)
    check(write_report(tmp_path).read_text())


def test_numbers_of_a_column_share_their_decimals():
    page = table(["split", "energy_mae_mev"], [["train", 0.123], ["valid", 123.4], ["test", float("nan")]])
    assert re.findall(r"<td>([^<]*)</td>", page) == ["train", "0.12", "valid", "123.40", "test", "–"]


def test_writing_again_replaces_the_page_and_leaves_nothing_else(tmp_path):
    page = write_report(tmp_path)
    assert write_report(tmp_path) == page
    assert list(tmp_path.iterdir()) == [page]

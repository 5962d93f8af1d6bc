"""Several processes train the model that one would train with all their frames."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch_geometric.data import Batch

from equimol.data import read
from equimol.training.checkpoint import read_checkpoint
from equimol.training.config import load_config
from equimol.training.fit import fit
from equimol.training.loss import loss_terms
from equimol.training.metrics import ErrorSums
from equimol.training.processes import ALONE, Processes
from equimol.training.progress import read_rows


@dataclass(frozen=True)
class Known(Processes):
    """Processes whose sum is known beforehand."""

    total: Tensor | None = None

    def sum(self, values: Tensor) -> Tensor:
        assert self.total is not None and values.shape == self.total.shape
        return self.total


@pytest.fixture(scope="module")
def parts(crystals: Path):
    """Batches of two processes, of unlike numbers of structures and labels, and their prediction: zero."""
    graphs = [frame.graph(4.0) for frame in read(crystals).frames]
    batches = [Batch.from_data_list(graphs[:1]), Batch.from_data_list([*graphs[1:3], *graphs[6:9], graphs[9].without_labels()])]
    whole = Batch.from_data_list([graphs[n] for n in (0, 1, 2, 6, 7, 8)])
    return batches, whole


def nothing(graph) -> dict[str, Tensor]:
    return {name: torch.zeros_like(graph[name]) for name in ("energy", "forces", "stress")}


@pytest.mark.parametrize("function", ["mse", "mae", "huber"])
def test_the_mean_over_processes_is_the_loss_over_all_their_entries(parts, function):
    batches, whole = parts
    names = ["energy", "forces", "stress"]
    expected = loss_terms(nothing(whole), whole, names, function)
    counts = torch.stack([sum(part[f"{name}_present"].sum() for part in batches) for name in names])
    counts *= torch.tensor([1, 1 if function == "mae" else 3, 9])
    shares = [loss_terms(nothing(part), part, names, function, Known(rank, 2, 2, counts)) for rank, part in enumerate(batches)]
    for name in names:
        torch.testing.assert_close((shares[0][name] + shares[1][name]) / 2, expected[name])


def test_errors_of_all_processes_are_those_of_one(parts):
    batches, whole = parts
    sums = [ErrorSums() for _ in range(3)]
    for one, graph in zip(sums, (*batches, whole), strict=True):
        one.update(nothing(graph), graph)
    quantities = ("energy_per_atom", "energy", "forces", "forces_cosine", "stress")
    seen = []

    @dataclass(frozen=True)
    class Adds(Processes):
        def sum(self, values: Tensor) -> Tensor:
            seen.append(values)
            return values if len(seen) < 2 else seen[0] + seen[1]

    first, both = (one.of_all(Adds(rank, 2, 2)) for rank, one in enumerate(sums[:2]))
    assert set(quantities) <= first.sums.keys() and sums[2].of_all(ALONE) is sums[2]
    assert both.result() == pytest.approx(sums[2].result(), rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["4", "{atoms: 16}"])
def test_two_processes_train_and_validate_as_one_with_the_doubled_batch(
    crystals: Path, tmp_path: Path, emt_frames, write_frames, batch: str
):
    """Structures with and without stress, an odd last batch; weights, errors and log agree to 1e-6."""
    data = write_frames(tmp_path / "set.xyz", [*emt_frames(21), *emt_frames(6, periodic=True)])
    half = str(int(batch) // 2) if batch.isdigit() else "{atoms: 8}"
    given = [f"data={data}", "preset=tiny", "split=random", "settings.channels=4", "cutoff=4.0", "precision=float64", "valid=3", "test=4"]
    given += ["steps=22", "validate_every=6", "checkpoint_every=5", "log_to=[]"]
    code = tmp_path / "train.py"
    code.write_text("import sys\nfrom equimol.training import config, fit\nfit.fit(config.load_config(None, sys.argv[1:]))\n")
    alone = [sys.executable, "-W", "ignore", str(code), *given, f"batch={batch}", f"out={tmp_path / 'one'}"]
    launch = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(alone, check=True, capture_output=True)
    told = subprocess.run(
        [*launch, str(code), *given, f"batch={half}", f"out={tmp_path / 'two'}"], check=True, capture_output=True, text=True
    )
    assert told.stdout.count("structures from") == 1  # only the first speaks
    one, two = (read_checkpoint(tmp_path / name / "last.ckpt")["state_dict"] for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-6, atol=1e-6)
    logs = [read_rows(tmp_path / name / "log.csv") for name in ("one", "two")]
    for a, b in zip(*logs, strict=True):
        for key in a.keys() - {"seconds", "step_seconds", "waiting"}:
            assert float(b[key]) == pytest.approx(float(a[key]), rel=1e-6, abs=1e-9), key
    predicted = [np.load(tmp_path / name / "predictions_test.npz")["forces_pred"] for name in ("one", "two")]
    np.testing.assert_allclose(*predicted, atol=1e-6)


def test_a_run_goes_on_with_as_many_processes_as_it_began_with(quick: list[str], monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("equimol.training.fit._train", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        fit(load_config(None, [*quick, "steps=3"]))
    folder = Path(load_config(None, quick).out)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"processes": 2}))
    with pytest.raises(ValueError, match="resumed with as many processes as it began with, 2, got 1"):
        fit(load_config(None, [*quick, "steps=3", "resume=true"]))

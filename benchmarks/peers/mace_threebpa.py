"""Errors of mace-torch's checkpoints on test files, over training time. Runs in mace-torch's own environment.

    python mace_threebpa.py RUN_FOLDER OUT.csv test_300.xyz test_600.xyz ...

RUN_FOLDER is where ``mace_run_train --save_all_checkpoints`` ran; afterwards, the same command with ``--restart_latest
--max_num_epochs=1`` must have written its ``.model`` file. Minutes count from the log line "Started training".
"""

import csv
import re
import sys
from datetime import datetime
from pathlib import Path

import ase.io
import numpy as np
import torch
from mace import data, tools
from mace.tools import torch_geometric


def main(folder: Path, out: Path, tests: list[Path], every: float = 3.0) -> None:
    log = next((folder / "logs").glob("*.log")).read_text()
    start = datetime.strptime(re.search(r"^(\S+ \S+) INFO: Started training", log, re.M)[1], "%Y-%m-%d %H:%M:%S.%f").timestamp()
    model = torch.load(next(folder.glob("*.model")), weights_only=False)
    parameters = sum(p.numel() for p in model.parameters())
    checkpoints = sorted((folder / "checkpoints").glob("*.pt"), key=lambda p: p.stat().st_mtime)
    rows, due = [], 0.0
    for number, path in enumerate(checkpoints):
        minutes = (path.stat().st_mtime - start) / 60
        following = (checkpoints[number + 1].stat().st_mtime - start) / 60 if number + 1 < len(checkpoints) else np.inf
        if minutes > 30 or (minutes < due and following <= 30):
            continue
        due = minutes + every
        model.load_state_dict(torch.load(path, weights_only=False)["model"])
        for test in tests:
            rows.append(
                {
                    "code": "mace-torch",
                    "minutes": round(minutes, 2),
                    "epoch": number,
                    "parameters": parameters,
                    "test": test.stem,
                    **errors(model, test),
                }
            )
            print(rows[-1], flush=True)
    with open(out, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def errors(model: torch.nn.Module, path: Path) -> dict[str, float]:
    frames = ase.io.read(path, ":", format="extxyz")
    table = tools.AtomicNumberTable([int(z) for z in model.atomic_numbers])
    keys = data.KeySpecification(info_keys={}, arrays_keys={})
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    graphs = [
        data.AtomicData.from_config(data.config_from_atoms(a, key_specification=keys), z_table=table, cutoff=float(model.r_max))
        for a in frames
    ]
    energy, forces = [], []
    for batch in torch_geometric.dataloader.DataLoader(graphs, batch_size=10, shuffle=False, drop_last=False):
        result = model(batch.to_dict(), compute_stress=False)
        energy.append(result["energy"].detach().double().numpy())
        forces.append(result["forces"].detach().double().numpy())
    torch.set_default_dtype(dtype)
    de = np.concatenate(energy) - [a.info["REF_energy"] for a in frames]
    df = np.concatenate(forces) - np.concatenate([a.arrays["REF_forces"] for a in frames])
    return {"energy_rmse_mev": 1000 * float(np.sqrt(np.mean(de**2))), "forces_rmse_mev_per_angstrom": 1000 * float(np.sqrt(np.mean(df**2)))}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(p) for p in sys.argv[3:]])

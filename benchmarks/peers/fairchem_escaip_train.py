"""Trains fairchem-core's conservative EScAIP for some minutes of processor time, for benchmarks/escaip_training.py.

Runs in an environment of its own.

    PEER/bin/python fairchem_escaip_train.py FOLDER MINUTES OUT.json

Settings are those of its published conservative configurations: AdamW (4e-4, no decay of norms, biases and embeddings), warm-up and a
cosine to 1 %, energy per atom 10 and force norms 20, clipping, averaged weights. The schedule is fitted to the time by timed steps.
"""

import copy
import json
import math
import random
import sys
import time

import ase.io
import numpy as np
import torch
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
from fairchem.core.models.escaip.EScAIP import EScAIPBackbone, EScAIPGradientEnergyForceStressHead

BATCH, RATE, DECAY, CLIP, AVERAGE = 5, 4e-4, 1e-3, 100.0, 0.999
SETTINGS = {
    "regress_forces": True,
    "direct_forces": False,
    "hidden_size": 64,
    "num_layers": 2,
    "use_compile": False,
    "use_padding": False,
    "use_pbc": True,
    "max_num_elements": 119,
    "max_atoms": 1000,
    "max_batch_size": 64,
    "max_radius": 6.0,
    "knn_k": 30,
    "knn_soft": True,
    "knn_sigmoid_scale": 0.2,
    "knn_lse_scale": 0.1,
    "knn_use_low_mem": True,
    "knn_pad_size": 60,
    "atten_name": "math",
    "atten_num_heads": 4,
    "atom_embedding_size": 32,
    "node_direction_embedding_size": 16,
    "edge_distance_expansion_size": 128,
    "edge_distance_embedding_size": 64,
    "freequency_list": [6, 4, 2, 2, 2],
}


def load(path: str, references: dict) -> list:
    """Frames as the model takes them, with the energy without references, forces and which of them count."""
    frames = []
    for atoms in ase.io.read(path, ":", format="extxyz"):
        energy = atoms.info["REF_energy"] - sum(references[str(z)] for z in atoms.numbers.tolist())
        forces, free = torch.tensor(atoms.arrays["REF_forces"]).float(), torch.tensor(~atoms.arrays["fixed"].astype(bool))
        if not atoms.pbc.any():
            atoms.set_cell(np.diag(np.ptp(atoms.positions, axis=0) + 30.0))
            atoms.center()
        atoms.pbc = True
        frames.append((AtomicData.from_ase(atoms), energy, forces, free))
    return frames


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = EScAIPBackbone(**SETTINGS)
        self.head = EScAIPGradientEnergyForceStressHead(self.backbone, wrap_property=False)

    def forward(self, frames: list) -> tuple:
        data = atomicdata_list_to_batch([frame[0].clone() for frame in frames])
        result = self.head(data, self.backbone(data))
        return result["energy"].flatten()[: len(frames)], result["forces"]


def main(folder: str, minutes: float, out: str) -> None:
    begin = time.process_time()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with open(f"{folder}/references.json") as file:
        references = json.load(file)
    train, valid, test = (load(f"{folder}/{part}.xyz", references) for part in ("train", "valid", "test"))
    scale = float(torch.cat([forces[free].flatten() for _, _, forces, free in train]).square().mean().sqrt())
    model = Model().train()
    averaged = copy.deepcopy(model)
    decayed, others = [], []
    for name, parameter in model.named_parameters():
        (decayed if parameter.ndim > 1 and "embedding.weight" not in name else others).append(parameter)
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}], lr=RATE)

    def step(frames: list) -> float:
        energies, forces = model(frames)
        atoms = torch.tensor([len(f[2]) for f in frames])
        target = torch.tensor([f[1] for f in frames]).float() / scale
        labels, free = torch.cat([f[2] for f in frames]) / scale, torch.cat([f[3] for f in frames])
        loss = 10 * ((energies - target) / atoms).abs().mean() + 20 * (forces - labels)[free].norm(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def average(number: int) -> None:
        weight = 1 - min(AVERAGE, (1 + number) / (10 + number))
        for mine, theirs in zip(averaged.parameters(), model.parameters(), strict=True):
            mine.lerp_(theirs, weight)

    def errors(frames: list) -> dict:
        averaged.eval()
        energy, components = [], []
        for frame in frames:
            e, f = averaged([frame])
            energy.append(abs(float(e.detach()[0]) * scale - frame[1]) / len(frame[2]))
            components.append((f.detach() * scale - frame[2])[frame[3]].flatten())
        components = torch.cat(components)
        return {
            "energy_mae_mev_per_atom": 1e3 * sum(energy) / len(energy),
            "forces_mae_mev_per_angstrom": 1e3 * float(components.abs().mean()),
            "forces_rmse_mev_per_angstrom": 1e3 * float(components.square().mean().sqrt()),
        }

    order = random.Random(0)
    start = copy.deepcopy(model.state_dict())
    times = []
    while len(times) < 12:  # timed on real batches, then begun anew
        chosen, before = order.sample(train, min(BATCH, len(train))), time.process_time()
        step(chosen)
        times.append(time.process_time() - before)
    model.load_state_dict(start)
    optimizer.state.clear()
    left = minutes * 60 * 0.97 - (time.process_time() - begin)
    steps = max(1, int(left / (float(np.median(times[2:])) * 1.02)))
    queue: list = []
    for number in range(steps):
        if time.process_time() - begin > minutes * 60 * 1.02:
            break
        if len(queue) < BATCH:
            queue += order.sample(train, len(train))
        chosen, queue = queue[:BATCH], queue[BATCH:]
        warm = min(1.0, (number + 1) / max(1, steps // 100))
        rate = RATE * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * number / steps)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = step(chosen)
        average(number)
        if number % max(1, steps // 50) == 0:
            print(
                f"fairchem step {number}/{steps} {(time.process_time() - begin) / 60:.1f} min loss {loss:.3f} {errors(valid[:20])}",
                flush=True,
            )
            averaged.train()
    found = {"steps": number + 1, "parameters": sum(p.numel() for p in model.parameters())} | errors(test)
    with open(out, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]), sys.argv[3])

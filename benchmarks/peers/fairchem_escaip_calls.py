"""Times EScAIP H512 L10 of fairchem-core on request, as benchmarks/escaip.py does ours. Runs in an environment of its own.

Its conservative form as its YAML has it: eager, math attention, no padding, 45 slots.
"""

import resource
import sys
import time

import ase.build
import numpy as np
import torch
from fairchem.core.datasets.atomic_data import AtomicData, atomicdata_list_to_batch
from fairchem.core.models.escaip.EScAIP import EScAIPBackbone, EScAIPGradientEnergyForceStressHead

SETTINGS = {
    "regress_forces": True,
    "direct_forces": False,
    "hidden_size": 512,
    "num_layers": 10,
    "use_compile": False,
    "use_padding": False,
    "use_pbc": True,
    "max_num_elements": 100,
    "max_atoms": 500,
    "max_batch_size": 64,
    "max_radius": 6.0,
    "knn_k": 30,
    "knn_soft": True,
    "knn_sigmoid_scale": 0.2,
    "knn_lse_scale": 0.1,
    "knn_use_low_mem": True,
    "knn_pad_size": 45,
    "atten_name": "math",
    "atten_num_heads": 8,
}


def structure(name: str) -> ase.Atoms:
    if name == "Cu32":
        atoms = ase.build.bulk("Cu", cubic=True) * (2, 2, 2)
    else:
        atoms = ase.build.molecule(name)
        atoms.set_cell([30.0, 30.0, 30.0])
        atoms.center()
    atoms.pbc = True
    atoms.positions += np.random.default_rng(0).normal(size=atoms.positions.shape) * 0.03
    return atoms


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = EScAIPBackbone(**SETTINGS)
    head = EScAIPGradientEnergyForceStressHead(backbone, wrap_property=False)
    parameters = [*backbone.parameters(), *head.parameters()]
    for line in sys.stdin:
        name, mode, calls = line.strip().split(";")
        atoms = structure(name)
        training = mode == "training step"
        for module in (backbone, head):
            module.train(training).requires_grad_(training)
        seconds = []
        for _ in range(int(calls)):
            begin = time.perf_counter()
            data = atomicdata_list_to_batch([AtomicData.from_ase(atoms)])
            result = head(data, backbone(data))
            if training:
                (result["energy"].square().sum() + result["forces"].square().sum()).backward()
                for parameter in parameters:
                    parameter.grad = None
            seconds.append(time.perf_counter() - begin)
        print(*seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)


if __name__ == "__main__":
    main()

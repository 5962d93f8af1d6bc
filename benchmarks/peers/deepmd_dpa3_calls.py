"""Times DPA3 of deepmd-kit on request, as benchmarks/dpa3.py does ours. Runs in an environment of its own.

    PEER/bin/python deepmd_dpa3_calls.py SYSTEM SIZES PATH      # PATH: eager, TorchScript or compiled; SIZES: widths as JSON

Settings are those of its example for water with dynamic selection; compiled ones those of its example with static selection.
"""

import contextlib
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from deepmd.pt.model.model import get_model
from deepmd.pt.utils import env
from deepmd.utils.argcheck import normalize
from deepmd.utils.compat import update_deepmd_input

REPFLOW = {
    "e_rcut": 6.0,
    "e_rcut_smth": 5.3,
    "e_sel": 1200,
    "a_rcut": 4.0,
    "a_rcut_smth": 3.5,
    "a_sel": 300,
    "axis_neuron": 4,
    "fix_stat_std": 0.3,
    "a_compress_rate": 1,
    "a_compress_e_rate": 2,
    "a_compress_use_split": True,
    "update_angle": True,
    "smooth_edge_update": True,
    "edge_init_use_dist": True,
    "use_exp_switch": True,
    "use_dynamic_sel": True,
    "sel_reduce_factor": 10.0,
    "update_style": "res_residual",
    "update_residual": 0.1,
    "update_residual_init": "const",
}
STATIC = {"use_dynamic_sel": False, "e_sel": 120, "a_sel": 30}


def model_settings(sizes: dict, **changes) -> dict:
    """Of a model of these widths, {"repflow": ..., "neuron": ...}."""
    common = {"activation_function": "silut:10.0", "precision": "float32", "seed": 1}
    repflow = {**REPFLOW, **sizes["repflow"], **changes}
    descriptor = {"type": "dpa3", "repflow": repflow, "use_tebd_bias": False, "concat_output_tebd": False, **common}
    fitting = {"neuron": sizes["neuron"], "resnet_dt": True, **common}
    return {"type_map": ["O", "H"], "descriptor": descriptor, "fitting_net": fitting}


def training_settings(model: dict, system: str, steps: int, **changes) -> dict:
    """Of a training as in the example: its decay of 200 stairs over however many steps. There are no virials in the data."""
    return {
        "model": model,
        "learning_rate": {"type": "exp", "decay_steps": max(1, steps // 200), "start_lr": 1e-3, "stop_lr": 3e-5},
        "loss": {
            "type": "ener",
            "start_pref_e": 0.2,
            "limit_pref_e": 20,
            "start_pref_f": 100,
            "limit_pref_f": 60,
            "start_pref_v": 0,
            "limit_pref_v": 0,
        },
        "optimizer": {"type": "AdamW", "adam_beta1": 0.9, "adam_beta2": 0.999, "weight_decay": 0.001},
        "training": {
            "training_data": {"systems": [system], "batch_size": 1},
            "numb_steps": steps,
            "gradient_max_norm": 5.0,
            "seed": 10,
            "disp_freq": max(1, steps // 20),
            "save_freq": steps,
            **changes,
        },
    }


def calls(system: Path, settings: dict, path: str):
    """The model, and a function of whether it is a training step, which makes one."""
    types = torch.tensor(np.loadtxt(system / "type.raw", dtype=int)[None])
    coord, box = (torch.tensor(np.load(system / "set.000" / f"{name}.npy")[:1]) for name in ("coord", "box"))
    env.CUSTOM_OP_USE_JIT = path == "eager"  # of the activation, as `dp train` has it; what it does cannot be scripted
    model = get_model(settings)
    called = torch.jit.script(model.eval()) if path == "TorchScript" else model

    def call(training: bool) -> None:
        if path == "eager":
            model.train(training)
        result = called(coord.view(1, -1, 3), types, box=box)
        if training:
            (result["energy"].square().sum() + result["force"].square().sum()).backward()
            model.zero_grad()

    return model, call


def compiled_calls(system: Path, settings: dict):
    """The same of the compiled model and the loss in the trainer of the experimental backend."""
    from deepmd.pt_expt.entrypoints.main import get_trainer

    config = training_settings(settings, str(system), 1000, enable_compile=True)
    trainer = get_trainer(normalize(update_deepmd_input(config, warning=False)))
    trainer.wrapper.train()

    def call(training: bool) -> None:
        inputs, labels = trainer.get_data()
        _, loss, _ = trainer.wrapper(**inputs, cur_lr=1e-3, label=labels, task_key="Default")
        loss.backward()
        trainer.wrapper.zero_grad()

    return trainer.wrapper, call


def megabytes_saved(call, model: torch.nn.Module) -> float:
    """Of distinct pieces of memory that autograd keeps during a call, those of the model apart."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        call()
    own = {value.untyped_storage().data_ptr() for value in model.state_dict().values() if isinstance(value, torch.Tensor)}
    return sum(storage.nbytes() for place, storage in kept.items() if place not in own) / 1e6


def main(system: Path, sizes: dict, path: str) -> None:
    torch.set_num_threads(1)
    atoms = len((system / "type.raw").read_text().split())
    model, call = None, None
    for line in sys.stdin:
        quantity, count = line.strip().split(";")
        begin = time.perf_counter()
        if call is None and path == "compiled":
            with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # for what the trainer writes
                model, call = compiled_calls(system, model_settings(sizes, **STATIC))
                call(True)
        elif call is None:
            model, call = calls(system, model_settings(sizes), path)
        if quantity == "compilation":
            print(time.perf_counter() - begin, flush=True)
            continue
        found = []
        for _ in range(int(count)):
            begin = time.perf_counter()
            if quantity == "saved for autograd":
                found.append(megabytes_saved(partial(call, False), model) / atoms)
                continue
            call(quantity == "training step")
            found.append(time.perf_counter() - begin)
        print(*found, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), json.loads(sys.argv[2]), sys.argv[3])

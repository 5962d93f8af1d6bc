"""One training run from settings to a folder with a model file, a log, error tables and a report."""

import contextlib
import dataclasses
import json
import logging
import math
import platform
import secrets
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from ase.data import chemical_symbols

from equimol.data.atomic import remove_parts, write_arrays, write_atomically
from equimol.data.properties import PROPERTIES
from equimol.data.statistics import core_reach
from equimol.models import MODELS, Potential, References, build_model, core, find_device, save
from equimol.training.batches import StepSampler, cut, ordered_loader, spare_workers, train_loader
from equimol.training.budget import EVALUATED_TRAIN_FRAMES, fit_to_budget
from equimol.training.config import TrainConfig, check_keys, dump_config
from equimol.training.evaluate import evaluate
from equimol.training.folder import only_writer, stored_run
from equimol.training.loss import resolve_weights
from equimol.training.metrics import error_table, weighted_error
from equimol.training.prepare import (
    TrainingData,
    build_graphs,
    data_set_names,
    find_average_neighbors,
    read_data,
    sampled_graphs,
)
from equimol.training.processes import Processes, all_processes
from equimol.training.references import find_references, find_scale_and_shift
from equimol.training.start import settle, take_weights


def fit(config: TrainConfig) -> Path:
    """Train as the settings say and return the folder of the run. With `resume`, continue the run that is in it.

    The folder holds: config.yaml (nothing left to choose: training it again gives the same weights), data.txt, skipped.txt where bad
    records were left out, summary.json, log.csv, last.ckpt, best.ckpt, model.equimol, errors.json, errors.txt,
    predictions_{split}.npz, report.html. Started by torchrun or SLURM in several processes, all train one model; the first one writes.
    """
    started = time.monotonic()
    folder = Path(config.out)
    if config.start and not (config.resume and (folder / "config.yaml").exists()):
        config = settle(config)
    outputs = check_model(config).outputs
    with all_processes() as group, contextlib.ExitStack() as stack:
        if config.compile and group.count > 1:
            raise ValueError(f"compile must be false in several processes, got true in {group.count}; leave it out, or use one process")
        stored, finished = group.of_first(lambda: _open_folder(folder, config, stack))
        if finished:
            print(f"{folder} holds a finished run: {folder / 'model.equimol'}")
            return folder
        data = read_data(stored or config)
        print(data.summary, flush=True)
        weights = resolve_weights((stored or config).loss, data.all_sums, outputs)
        build_graphs(data, check_model(stored or config, data.elements).cutoff, (stored or config).skip_bad)
        config = group.of_first(
            lambda: _begin(config, data, weights, folder, started, group) if stored is None else _continue(stored, data, folder, group)
        )
        later = {name: float(config.stage_two.get(name, weight)) for name, weight in config.loss.items()}
        later = resolve_weights(later, data.all_sums, outputs) if config.stage_two else weights
        module = _train(config, data, weights, later, folder, started, group)
        return _finish(config, data, later, folder, module.averaged) if group.first else folder


def _open_folder(folder: Path, config: TrainConfig, stack: contextlib.ExitStack) -> tuple[TrainConfig | None, bool]:
    """The settings of the run to be continued, if one is, and whether it is finished. The folder is locked from now on."""
    stored = stored_run(folder, config)
    finished = stored is not None and (folder / "report.html").exists()
    if not finished:
        stack.enter_context(only_writer(folder))
    return stored, finished


# --- before training -----------------------------------------------------------------------------------------------------------


def check_model(config: TrainConfig, elements: list[int] | None = None) -> Potential:
    """A throw-away model by these settings: asked first, so that a wrong one is named before a large file is read; later for the cutoff."""
    if not config.data:
        raise ValueError("data must name a file with labelled frames: equimol train data.xyz, or data: data.xyz in the YAML file")
    check_keys("MODELS", [config.model], MODELS)
    if isinstance(config.data, dict) and "data_sets" not in _fields(config.model):
        able = ", ".join(name for name in MODELS if "data_sets" in _fields(name))
        raise ValueError(f"several data sets need a model that tells them apart: {able}, got {config.model}; for one, name only its files")
    presets = list(MODELS[config.model].presets)
    preset = config.preset if config.preset != "auto" else presets[0]
    model = make_model(config, preset, elements or [1])
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError(f"{config.model} has nothing to learn; train one of {', '.join(_learning_models())}")
    if config.compile and not model.traceable:
        raise ValueError(f"compile must be false for {config.model}, which cannot be compiled yet; escaip and dpa3 can")
    if config.recompute and core(model).recompute is None:
        raise ValueError(f"recompute must be false for {config.model}, which keeps little as it is; escaip can")
    for name, weight in config.loss.items():
        if name not in model.outputs and weight not in ("auto", 0):
            given = ", ".join(output for output in model.outputs if output in PROPERTIES)
            raise ValueError(f"loss.{name} must be 0 or auto for {config.model}, which gives {given}, got {weight}; leave it out")
    return model


def _learning_models() -> list[str]:
    with torch.random.fork_rng(devices=[]):
        return [name for name in MODELS if any(p.requires_grad for p in build_model(name, elements=[1]).parameters())]


def make_model(
    config: TrainConfig,
    preset: str,
    elements: list[int],
    references: References | None = None,  # eV
    scale: float = 1.0,  # eV
    shift: float = 0.0,  # eV per atom
    neighbors: float = 1.0,
) -> Potential:
    """The model with seeded fresh weights. Statistics of the data go where its configuration has a field for them."""
    fields = _fields(config.model)
    names = data_set_names(config)
    if names and references is None:
        references = {name: dict.fromkeys(elements, 0.0) for name in names}
    known = {"cutoff": config.cutoff, "average_neighbors": neighbors} | ({"data_sets": len(names)} if names else {})
    settings = {name: value for name, value in known.items() if name in fields} | config.settings
    statistics = {"references": references, "scale": scale, "shift": shift}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # not torch.manual_seed, which reaches every device
        model = build_model(config.model, preset, elements=elements, zbl=config.zbl, **statistics, **settings)
    _freeze(core(model), config.freeze)
    if config.recompute and core(model).recompute is not None:
        core(model).recompute = True
    return model.to(getattr(torch, config.precision))


def _fields(model: str) -> set[str]:
    """Of a model's own configuration."""
    return {field.name for field in dataclasses.fields(MODELS[model].config)}


def _freeze(model: Potential, beginnings: Sequence[str]) -> None:
    """Weights whose names begin so are not trained."""
    for beginning in beginnings:
        chosen = [p for name, p in model.named_parameters() if f"{name}.".startswith(f"{beginning}.")]
        if not chosen:
            parts = dict.fromkeys(name.split(".")[0] for name, _ in model.named_parameters())
            raise ValueError(f"freeze must name weights of {model.name}, which begin with {', '.join(parts)}; got {beginning!r}")
        for parameter in chosen:
            parameter.requires_grad_(False)


def _begin(
    config: TrainConfig, data: TrainingData, weights: dict[str, float], folder: Path, started: float, group: Processes
) -> TrainConfig:
    """Decide all that is left open, print it, and write it down."""
    told = data.summary
    if config.start:
        start = take_weights(make_model(config, config.preset, data.elements), config.start)
        print(start)
        told += f"\n{start}"
    references, method = find_references(config, data)
    scale, shift = find_scale_and_shift(config, data, references)
    neighbors = find_average_neighbors(data)
    statistics = {"references": references, "scale": scale, "shift": shift}
    if config.zbl is True:
        config = dataclasses.replace(config, zbl=core_reach(sampled_graphs(data)))

    def build(preset: str) -> Potential:
        return make_model(config, preset, data.elements, references, scale, shift, neighbors).to(find_device(config.device))

    config, text = fit_to_budget(config, data, weights, build, list(MODELS[config.model].presets), started, group.count)
    if any(field.name == "average_neighbors" for field in dataclasses.fields(MODELS[config.model].config)):
        config = dataclasses.replace(config, settings={"average_neighbors": neighbors, **config.settings})
    loss = {name: weights[name] if weight == "auto" else weight for name, weight in config.loss.items()}
    config = dataclasses.replace(config, **statistics, loss=loss)
    model = build(config.preset)
    parameters = sum(p.numel() for p in model.parameters())
    text += f"; {parameters} parameters"
    if config.freeze:
        text += f", {sum(p.numel() for p in model.parameters() if not p.requires_grad)} of them frozen"
    for name, table in references.items() if data.data_sets else [("", references)]:
        values = ", ".join(f"{chemical_symbols[z]} {energy:.6f}" for z, energy in table.items())
        print(f"reference energies {f'of {name}' if name else f'({method})'}, eV: {values}")
    print(f"{text}, scale {scale:.3g} eV, {neighbors:.1f} neighbours; into {folder}", flush=True)
    summary = {
        "parameters": parameters,
        "references_method": method,
        "elements": data.elements,
        "average_neighbors": neighbors,
        "frames": {name: len(frames) for name, frames in data.frames.items()},
        "label_keys": data.label_keys,
        "weights": weights,
        "data_checksum": data.checksum,
        "run_id": secrets.token_hex(4),
        "processes": group.count,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, {find_device(config.device)}",
    }
    if config.skip_bad:
        print(f"{len(data.skipped)} bad records skipped, listed in {folder / 'skipped.txt'}")
        write_atomically(folder / "skipped.txt", "".join(f"{fault}\n" for fault in data.skipped))
    write_atomically(folder / "data.txt", told + "\n")
    write_atomically(folder / "summary.json", json.dumps(summary, indent=1))
    write_atomically(folder / "config.yaml", dump_config(dataclasses.replace(config, resume=False)))  # the last: it marks a run
    return config


def _continue(config: TrainConfig, data: TrainingData, folder: Path, group: Processes) -> TrainConfig:
    before = _summary(folder).get("processes", 1)
    if group.count != before:
        raise ValueError(f"a run is resumed with as many processes as it began with, {before}, got {group.count}: they share each step")
    if data.checksum != _summary(folder)["data_checksum"]:
        raise ValueError(f"the data files are not those that {folder} was started with; bring them back, or start another run with out=...")
    remove_parts(folder)
    return config


# --- training ------------------------------------------------------------------------------------------------------------------


def _train(
    config: TrainConfig,
    data: TrainingData,
    weights: dict[str, float],
    later_weights: dict[str, float],
    folder: Path,
    started: float,
    group: Processes,
) -> Any:
    """The trained module, from the last checkpoint on if there is one."""
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import DDPStrategy

    from equimol.training.checkpoint import AtomicCheckpointIO, Checkpoints, read_checkpoint
    from equimol.training.module import TrainingModule
    from equimol.training.progress import ProgressBar, RunLog, make_loggers

    last = folder / "last.ckpt"
    checkpoint = read_checkpoint(last) if last.exists() else None
    start = checkpoint["global_step"] if checkpoint else 0
    neighbors = config.settings.get("average_neighbors", 1.0)
    model = make_model(config, config.preset, data.elements, config.references, config.scale, config.shift, neighbors)
    if config.start and not checkpoint:
        take_weights(model, config.start)
    module = TrainingModule(model, weights, config, config.steps, group, later_weights)
    if config.compile and start < config.steps:
        print("compiling, which may take some minutes", flush=True)
        module.to(find_device(config.device)).train().compile_model(data.graphs["train"])
    if start >= config.steps:
        module.load_state_dict(checkpoint["state_dict"])
        return module
    graphs, every = data.graphs, config.accumulate
    workers = spare_workers(graphs["train"], group.per_node) if config.workers == "auto" else config.workers
    size, sizes = cut(config.batch, graphs["train"])
    sampler = StepSampler(
        *(len(graphs["train"]), size, config.seed, every * config.steps, every * start, data.parts(config.sampling), sizes),
        *(group.rank, group.count),
    )
    loader = train_loader(graphs["train"], sampler, workers)
    validation = ordered_loader(graphs["valid"], config.batch, workers, group.rank, group.count) if len(graphs["valid"]) else None
    loggers = make_loggers(config.log_to, folder, _summary(folder)["run_id"]) if group.first else ()
    log = RunLog(
        folder, config, sampler.steps_per_epoch / every, validation is not None, time.monotonic() - started, loader, group, loggers
    )
    if checkpoint:
        print(f"continuing after step {start} of {config.steps}", flush=True)
    with _quiet_lightning(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # not torch.manual_seed, which reaches every device
        strategy: Any = "auto"
        if group.count > 1:
            unused = module.leaves_parameters_out(next(iter(ordered_loader(graphs["train"][:1], 1))))
            strategy = DDPStrategy(find_unused_parameters=unused, broadcast_buffers=False)  # buffers are constants
        trainer = pl.Trainer(
            max_epochs=1,  # the whole run is one epoch of `steps` batches: a position in it is one number
            val_check_interval=every * config.validate_every,
            accumulate_grad_batches=every,
            accelerator="gpu" if find_device(config.device).type == "cuda" else "cpu",
            strategy=strategy,
            devices=group.per_node,
            num_nodes=group.count // group.per_node,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,
            use_distributed_sampler=False,
            default_root_dir=folder,
            plugins=[AtomicCheckpointIO()],
            callbacks=[
                *(log, Checkpoints(last, config.checkpoint_every, every, group)),
                *([ProgressBar(config.steps)] if group.first else []),
            ],
        )
        trainer.fit(module, loader, validation, ckpt_path=str(last) if checkpoint else None)
    return module


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Without its notices on devices, tips and workers; as before afterwards."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# --- after training ------------------------------------------------------------------------------------------------------------


def _finish(config: TrainConfig, data: TrainingData, weights: dict[str, float], folder: Path, model: Potential) -> Path:
    """Choose the weights, save the model, write errors, predictions and the report."""
    model = model.to(find_device(config.device)).eval()
    chosen = _choose_weights(config, data, weights, folder, model)
    print(chosen)
    evaluations = {}
    for name in ("train", "valid", "test"):
        subset = slice(EVALUATED_TRAIN_FRAMES if name == "train" else None)
        frames, graphs = data.frames[name][subset], data.graphs[name][subset]
        if len(frames):
            evaluations[name] = evaluate(model, frames, config.batch, graphs)
        for data_set in data.data_sets if len(frames) and len(data.data_sets) > 1 else ():
            own = data.of_set(name, data_set)
            own = slice(own.start, min(own.stop, len(frames)))
            if len(frames[own]):
                evaluations[f"{name} {data_set}"] = evaluate(model, frames[own], config.batch, graphs[own])
    errors = {name: evaluation.errors for name, evaluation in evaluations.items()}
    summary = _summary(folder)
    training = {**dataclasses.asdict(config), "weights": chosen, "errors": errors}
    metadata = {"label_keys": data.label_keys, "references_method": summary["references_method"], "training": training}
    if config.level_of_theory:
        metadata["level_of_theory"] = config.level_of_theory
    save(model, folder / "model.equimol", metadata)
    table = error_table(errors)
    if len(data.frames["train"]) > EVALUATED_TRAIN_FRAMES:
        table += f"\ntrain: the first {EVALUATED_TRAIN_FRAMES} of {len(data.frames['train'])} frames"
    write_atomically(folder / "errors.json", json.dumps(errors, indent=1))
    write_atomically(folder / "errors.txt", f"{table}\n\n{chosen}\n")
    for name in data.frames.keys() & evaluations.keys():
        write_arrays(folder / f"predictions_{name}.npz", evaluations[name].predictions)
    write_atomically(folder / "summary.json", json.dumps({**summary, "weights_saved": chosen}, indent=1))
    _report(folder)
    print(table, flush=True)
    return folder


def _choose_weights(config: TrainConfig, data: TrainingData, weights: dict[str, float], folder: Path, model: Potential) -> str:
    """Leaves the better of the final and the best validated average in the model, and says which it is."""
    from equimol.training.checkpoint import read_checkpoint

    final = f"model.equimol holds the average of the weights at the last step, {config.steps}"
    if not len(data.graphs["valid"]) or not (folder / "best.ckpt").exists():
        return final
    best = read_checkpoint(folder / "best.ckpt")
    error = weighted_error(evaluate(model, data.frames["valid"], config.batch, data.graphs["valid"]).errors, weights)
    if math.isfinite(error) and error <= best["error"]:
        return f"{final}: its validation error is the lowest"
    model.load_state_dict(best["averaged"])
    chosen = f"model.equimol holds the average of the weights at step {best['step']} of {config.steps}"
    return f"{chosen}: its validation error is lower than that of the last step"


def _report(folder: Path) -> None:
    from equimol.training.report import write_report

    write_report(folder)


def _summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())

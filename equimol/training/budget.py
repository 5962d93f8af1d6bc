"""How long a run is: batch, preset and number of steps that fit the time, found by timing real steps on this machine."""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from torch import nn

from equimol.data.selection import atoms_of
from equimol.training.batches import Batch, StepSampler, cut, ordered_loader, spare_workers, told, train_loader, typical_frames
from equimol.training.config import TrainConfig, parse_duration
from equimol.training.module import TrainingModule, make_optimizer
from equimol.training.prepare import TrainingData

RESERVE = 0.04  # of the time, for a machine that slows down
START_AND_REPORT_SECONDS = 5.0  # before and after the run itself: imports, figures of the report
TRAINER_SECONDS = 0.001  # what the trainer adds to each step: 0.6 ms, measured on a model that does nothing
MOST_VALIDATIONS = 50
ATOMS_PER_STEP = 50  # of batch=auto
EVALUATED_TRAIN_FRAMES = 500  # of the training set, in the final table

# preset=auto takes the largest preset that gets so many passes over the training set, or 200 times as many steps
ENOUGH_EPOCHS = {"nano": 0, "small": 30, "medium": 300}


def fit_to_budget(
    config: TrainConfig,
    data: TrainingData,
    weights: dict[str, float],
    build: Callable[[str], nn.Module],  # a model of a preset
    presets: Sequence[str],
    started: float,  # time.monotonic() when the run began: the time includes what came before
    processes: int = 1,
) -> tuple[TrainConfig, str]:
    """The settings with batch, preset, steps and validate_every as numbers, and a sentence that says what was chosen and why."""
    graphs, batch = data.graphs, config.batch
    if batch == "auto":
        batch = automatic_batch(data)
    if isinstance(batch, int):
        batch = min(batch, len(graphs["train"]))
    config = dataclasses.replace(config, batch=batch)
    size, sizes = cut(batch, graphs["train"])
    parts = data.parts(config.sampling)
    sampler = StepSampler(len(graphs["train"]), size, config.seed, 1, parts=parts, sizes=sizes, processes=processes)
    per_epoch = -(-sampler.steps_per_epoch // config.accumulate)
    candidates = [name for name in ENOUGH_EPOCHS if name in presets] if config.preset == "auto" else [config.preset]
    candidates = candidates or [next(iter(presets))]
    if config.steps or config.epochs or not config.time:
        preset = config.preset if config.preset != "auto" else ("small" if "small" in candidates else candidates[-1])
        steps = config.steps or -(-sampler.steps_of(config.epochs or 100) // config.accumulate)
        validations, pace = steps // per_epoch, ""
    else:
        preset, steps, validations, step_seconds = _by_time(config, data, weights, build, candidates, per_epoch, started)
        pace = f", {1000 * step_seconds:.0f} ms each, to fit {config.time}"
        if steps < per_epoch:
            pace += f" (warning: less than one pass over the {len(graphs['train'])} training frames fits; give more time or fewer frames)"
    every = config.validate_every
    if every == "auto":
        every = max(1, steps // max(1, min(MOST_VALIDATIONS, validations)))
        if not config.steps and not config.epochs:
            steps -= steps % every  # so that the last step is validated, too
    config = dataclasses.replace(config, preset=preset, steps=steps, validate_every=min(every, steps))
    step = _step_in_words(config, graphs["train"], processes)
    return config, f"{config.model} {preset}: {steps} steps of {step}, {steps / per_epoch:.1f} epochs{pace}"


def _step_in_words(config: TrainConfig, graphs: Sequence[Any], processes: int) -> str:
    times = [f"{number} {kind} of " for number, kind in ((processes, "processes"), (config.accumulate, "batches")) if number > 1]
    return "".join(times) + told(config.batch, graphs)


def automatic_batch(data: TrainingData) -> int:
    """Frames that hold about 50 atoms together, one to five of them.

    Small steps learn more in a given time: on 3BPA (27 atoms), two frames a step reach 78 meV/Å where five reach 89 and one 86.
    """
    return max(1, min(5, round(ATOMS_PER_STEP / float(atoms_of(data.frames["train"]).mean()))))


def train_step_seconds(
    model: nn.Module, graphs: Sequence[Any], weights: dict[str, float], config: TrainConfig, limit: float = 3.0
) -> float:
    """Median time of a full optimizer step on a copy of the model: batch assembly, forward, backward, clipping, update, average.

    The first two steps are not counted; then 3 to 300 steps are, within `limit` seconds.
    """
    module = TrainingModule(copy.deepcopy(model), weights, config, total_steps=100).train()
    if config.compile:
        module.compile_model(graphs)
    optimizer, device = make_optimizer(module.model, config), next(module.parameters()).device
    times: list[float] = []
    begin = time.perf_counter()
    size, sizes = cut(config.batch, graphs)
    workers = spare_workers(graphs) if config.workers == "auto" else config.workers
    sampler = StepSampler(len(graphs), size, config.seed, 302, sizes=sizes)
    for step, graph in enumerate(train_loader(graphs, sampler, workers), start=1):
        loss = module.training_step(graph.to(device))
        optimizer.zero_grad()
        loss.backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        module.update_average(step)
        float(loss.detach())  # wait for the device
        times.append(time.perf_counter() - begin)
        if len(times) >= 5 and times[-1] > limit:
            break
        if step == 2:
            limit += times[-1]  # warming up is not counted
    return config.accumulate * (statistics.median(later - earlier for earlier, later in pairwise(times[1:])) + TRAINER_SECONDS)


def _timing_seconds(budget: float) -> float:
    """What timing may take: a hundredth of the time, a little more of a short one."""
    return min(20.0, max(3.0, 0.01 * budget), 0.02 * budget)


def evaluation_seconds(model: nn.Module, graphs: Sequence[Any], batch: Batch) -> float:
    """Time per frame to predict energies and forces in evaluation mode."""
    model = copy.deepcopy(model).eval()
    device = next(model.parameters()).device
    times = []
    for graph in ordered_loader(graphs[: 3 * typical_frames(batch, graphs)], batch):
        begin = time.perf_counter()
        float(model(graph.to(device))["energy"].sum())
        times.append((time.perf_counter() - begin) / graph.num_systems)
    return min(times)


def _by_time(config, data, weights, build, candidates, per_epoch, started) -> tuple[str, int, int, float]:
    """The largest candidate that learns enough in the time, its steps and validations, and the seconds of a step."""
    budget = parse_duration(config.time or "1h")
    chosen = ()
    for preset in candidates:
        model = build(preset)
        begin = time.monotonic()
        step_seconds = train_step_seconds(model, data.graphs["train"], weights, config, limit=_timing_seconds(budget))
        compiling = time.monotonic() - begin if config.compile else 0.0  # at most so long once more, when training begins
        frame_seconds = evaluation_seconds(model, data.graphs["train"], config.batch)
        steps, _ = _steps_in(budget, budget - (time.monotonic() - started) - compiling, step_seconds, frame_seconds, data, per_epoch)
        enough = steps >= ENOUGH_EPOCHS.get(preset, 0) * min(per_epoch, 200)
        if not chosen or enough:
            chosen = (preset, step_seconds, frame_seconds, compiling)
        if not enough:
            break
    preset, step_seconds, frame_seconds, compiling = chosen
    left = budget - (time.monotonic() - started) - compiling  # less than when it was timed, if a larger one was tried since
    return preset, *_steps_in(budget, left, step_seconds, frame_seconds, data, per_epoch), step_seconds


def _steps_in(budget: float, left: float, step_seconds: float, frame_seconds: float, data: TrainingData, per_epoch: int) -> tuple[int, int]:
    """Steps and validations that leave room for the table at the end. A validation per epoch, while they take a tenth of the time at most.

    At least one step and one validation: a run that is too short says so by its errors.
    """
    sizes = {name: len(graphs) for name, graphs in data.graphs.items()}
    final = frame_seconds * (min(sizes["train"], EVALUATED_TRAIN_FRAMES) + 2 * sizes["valid"] + sizes["test"])
    usable = max(0.0, left - RESERVE * budget - START_AND_REPORT_SECONDS - final)
    seconds_each = max(sizes["valid"] * frame_seconds, 1e-9)
    validations = max(1, min(MOST_VALIDATIONS, int(usable / (per_epoch * step_seconds)), int(0.1 * usable / seconds_each)))
    return max(1, int((usable - validations * seconds_each) / step_seconds)), validations

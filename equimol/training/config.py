"""Settings of a training run: one frozen dataclass, its YAML file and `key=value` overrides on top."""

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from equimol.data.properties import INPUTS, PROPERTIES
from equimol.data.units import stated


@dataclass(frozen=True)
class TrainConfig:
    """What one run does: the keys of its YAML file. Weights of the loss that are not given keep their defaults."""

    # the data
    data: Annotated[str | list[str] | dict, "file or files with labelled frames; {data set: file(s)} for several levels of theory"] = ""
    keys: Annotated[dict, "label: key in the file, where the detected one is not the one meant"] = field(default_factory=dict)
    energy_key: Annotated[Literal["auto", "energy", "free_energy"], "which energy, where a file has both"] = "auto"
    fixed: Annotated[Literal["auto", "tags", "none"], "whose forces do not count: auto (constraints, column fixed), tags (tag 0)"] = "auto"
    units: Annotated[dict, "quantity: unit of the files, where their format does not say it: {energy: hartree, stress: -kbar}"] = field(
        default_factory=dict
    )
    skip_bad: Annotated[bool, "leave out records that cannot be used and list them in skipped.txt; else the first is an error"] = False
    split: Annotated[str, "auto | blocks | random | group:KEY"] = "auto"
    valid: Annotated[float | str | dict, "validation: a fraction, a number of frames, or a file; or one by data set"] = 0.1
    test: Annotated[float | str | list[str] | dict, "test: a fraction, a number of frames, or file(s); or those by data set"] = 0.1
    sampling: Annotated[dict, "data set: its share of the frames of a step; {}: by its number of frames"] = field(default_factory=dict)
    references: Annotated[
        str | dict,
        "auto (those of start, else isolated atoms, else ridge regression), fit (ridge regression around those of start), "
        "a file of isolated atoms, {element: eV}, or any of these by data set",
    ] = "auto"
    level_of_theory: Annotated[str | None, "written into the model file"] = None
    # the model
    model: Annotated[str, "a name of equimol.models.MODELS"] = "mace"
    preset: Annotated[str, "auto (fits the time) or a preset of the model: nano, small, medium"] = "auto"
    start: Annotated[str | None, "model file to begin with: weights, and the settings, references and scale that are left open here"] = None
    freeze: Annotated[list[str], "beginnings of names of weights that stay as they are, such as element or layers.0"] = field(
        default_factory=list
    )
    settings: Annotated[dict, "fields of the model's own configuration, laid over the preset"] = field(default_factory=dict)
    cutoff: Annotated[float, "Å"] = 5.0
    zbl: Annotated[bool | dict, "add the ZBL core repulsion; {H-H: Å, ...} says where it ends, true finds that in the training data"] = True
    scale: Annotated[float | Literal["auto"], "energy scale of the model, eV; auto: root mean square force of the training set"] = "auto"
    shift: Annotated[float | Literal["auto"], "eV per atom, added to the references; auto: mean of what they leave in the training set"] = (
        "auto"
    )
    precision: Annotated[Literal["float32", "float64"], "of the model; geometry, labels and energy sums stay float64"] = "float32"
    # the length; steps go before epochs, epochs before time
    time: Annotated[str | None, "whole run: 90s, 30m, 1h30m; the schedule fits it; null: 100 epochs"] = "1h"
    epochs: Annotated[int | None, "length in passes over the training set, instead of time"] = None
    steps: Annotated[int | None, "length in optimizer steps, instead of epochs"] = None
    # the optimisation
    loss: Annotated[dict, "weight of each property; auto: on where there are labels"] = field(
        default_factory=lambda: {"energy": 1.0, "forces": 10.0, "stress": "auto"}
    )
    loss_function: Annotated[Literal["mse", "huber", "mae"], "of the errors, per property; mae: of forces, the lengths"] = "mse"
    stage_two: Annotated[dict, "other weights of the loss from a share of the run on: {start: 0.75, energy: 100, forces: 1}"] = field(
        default_factory=dict
    )
    batch: Annotated[
        int | dict | Literal["auto"],
        "frames per step and process, or a budget, {atoms: 500} or {edges: 20000}; auto: about 50 atoms, one to five frames",
    ] = "auto"
    accumulate: Annotated[int, "batches whose gradients make one step"] = 1
    learning_rate: Annotated[float, "largest one; warms up linearly, then falls as schedule says"] = 0.01
    schedule: Annotated[
        Literal["cosine", "exponential", "wsd"], "to zero along a cosine, to a hundredth, or constant and to zero over the last fifth"
    ] = "cosine"
    warmup: Annotated[int, "steps; at most a tenth of the run"] = 100
    weight_decay: Annotated[float, "on matrices only"] = 1e-6
    clip: Annotated[float, "largest gradient norm; nearly always reached: steep beginnings would shrink every later AMSGrad step"] = 0.1
    ema: Annotated[float, "decay of the average of weights that is validated and saved; 0: none"] = 0.99
    seed: Annotated[int, "of split, weights and data order"] = 0
    # the machinery
    validate_every: Annotated[int | Literal["auto"], "steps; auto: every epoch, at most 50 times and a tenth of the time"] = "auto"
    checkpoint_every: Annotated[int, "steps; a checkpoint is written every minute anyway"] = 1000
    workers: Annotated[int | Literal["auto"], "processes that assemble batches; auto: none, of a packed set one or two"] = "auto"
    log_to: Annotated[
        list[str] | Literal["auto"], "besides log.csv: tensorboard, wandb; auto: tensorboard, where that package is installed"
    ] = "auto"
    compile: Annotated[bool, "train through a compiled program (escaip, dpa3): some minutes to begin with, then quicker steps"] = False
    recompute: Annotated[bool, "keep less for derivatives (escaip): less than half of the memory, nearly twice the time of a step"] = False
    device: Annotated[Literal["auto", "cpu", "cuda"], "auto: cuda where there is one"] = "auto"
    out: Annotated[str, "folder of the run"] = "runs/first"
    resume: Annotated[bool | Literal["auto"], "continue the run in that folder with the settings stored there; auto: if there is one"] = (
        False
    )

    def __post_init__(self) -> None:
        """Every value is checked against its annotation, so that a wrong one is named before anything is read."""
        for name, value in _converted(vars(self)).items():
            object.__setattr__(self, name, value)
        check_keys("loss", self.loss, PROPERTIES)
        check_keys("keys", self.keys, PROPERTIES | INPUTS)
        object.__setattr__(self, "loss", {name: _weight(name, weight) for name, weight in self.loss.items()})
        if self.time is not None:
            parse_duration(self.time)
        for name, rule, holds in self._rules():
            if not holds:
                raise ValueError(f"{name} must be {rule}, got {getattr(self, name)!r}")
        try:
            stated(self.units)
        except ValueError as error:
            raise ValueError(f"units: {error}") from None

    def _rules(self) -> Iterable[tuple[str, str, bool]]:
        yield "cutoff", "positive, in Å", self.cutoff > 0
        yield "batch", "at least 1, or a budget {atoms: N} or {edges: N} of at least 1", self.batch == "auto" or _is_batch(self.batch)
        yield "accumulate", "at least 1", self.accumulate >= 1
        yield "stage_two", f"{{start: share of the run, {' or '.join(PROPERTIES)}: weight}}, or empty", _is_stage(self.stage_two)
        known = self.log_to == "auto" or set(self.log_to) <= {"tensorboard", "wandb"}
        yield "log_to", "auto or a list of tensorboard and wandb", known
        yield "units", "a mapping of length, energy, forces, stress to units in words", all(map(_is_text, self.units.values()))
        yield "learning_rate", "positive", self.learning_rate > 0
        yield "clip", "positive", self.clip > 0
        yield "ema", "at least 0 and below 1", 0 <= self.ema < 1
        yield "validate_every", "at least 1", self.validate_every == "auto" or self.validate_every >= 1
        yield "checkpoint_every", "at least 1", self.checkpoint_every >= 1
        yield "workers", "0 or more", self.workers == "auto" or self.workers >= 0
        yield "recompute", "false with compile, which decides itself what to keep", not (self.recompute and self.compile)
        for name in ("epochs", "steps"):
            yield name, "at least 1", getattr(self, name) is None or getattr(self, name) >= 1
        for name in ("valid", "test"):
            shares = list(given.values()) if isinstance(given := getattr(self, name), dict) else [given]
            yield name, "a fraction below 1, a whole number of frames, or a file", all(map(_is_share, shares))
        sets = self.data if isinstance(self.data, dict) else {}
        named = all(isinstance(files, (str, list)) for files in sets.values())
        yield "data", "a file, a list of files, or {data set: file or list of files}", named
        for name in ("valid", "test", "sampling"):
            given = getattr(self, name)
            known = not isinstance(given, dict) or given.keys() <= sets.keys()
            yield name, f"by data set with the names in data ({', '.join(sets) or 'which has none'})", known
        shares = self.sampling.values()
        positive = all(isinstance(share, (int, float)) and not isinstance(share, bool) and share > 0 for share in shares)
        yield "sampling", "a positive number for each data set, or for none", positive and self.sampling.keys() in (set(), sets.keys())
        for name in ("warmup", "weight_decay"):
            yield name, "0 or more", getattr(self, name) >= 0


def load_config(path: str | Path | None = None, overrides: Iterable[str] = ()) -> TrainConfig:
    """The settings of a YAML file, if there is one, with `key=value` laid over them (`loss.forces=100` reaches inside)."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = yaml.safe_load(Path(path).read_text()) or {}
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold lines of `key: value`, got {type(values).__name__}")
        try:
            config_from(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    for text in overrides:
        _apply_override(values, text)
    return config_from(values)


def config_from(values: Mapping[str, Any]) -> TrainConfig:
    """A TrainConfig from plain values, laid over the defaults of the model and those of all; so are the weights of the loss."""
    known = [name for name, _, _ in settings()]
    for name in values:
        if name not in known and name in _model_fields(values.get("model", TrainConfig.model)):
            raise ValueError(f"TrainConfig has no field {name!r}; the model has: write settings.{name}={values[name]}")
    check_keys("TrainConfig", values, known)
    suited = _suited_to(values["model"]) if "model" in values else {}
    weights = TrainConfig().loss | suited.get("loss", {})
    values = {**suited, "loss": weights, **values}
    if isinstance(values["loss"], dict):
        values["loss"] = weights | values["loss"]
    return TrainConfig(**_converted(values))


def _suited_to(model: Any) -> Mapping[str, Any]:
    """What a model has instead of the defaults."""
    from equimol.models import MODELS  # here: without a model, settings are read at once

    entry = MODELS.get(str(model))
    return entry.training if entry else {}


def _model_fields(model: Any) -> list[str]:
    """Names of the fields of the model's own configuration; none for an unknown model."""
    from equimol.models import MODELS  # here: only an error needs the models

    entry = MODELS.get(str(model))
    return [field.name for field in fields(entry.config)] if entry else []


def settings() -> Iterator[tuple[str, Any, str]]:
    """(name, type, explanation) of every setting, in the order of the file."""
    for name, hint in typing.get_type_hints(TrainConfig, include_extras=True).items():
        yield name, *typing.get_args(hint)


def dump_config(config: TrainConfig) -> str:
    """The YAML text that loads back to the same settings, each with its explanation."""
    lines = []
    for name, _, explanation in settings():
        text = yaml.safe_dump(getattr(config, name), default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000)
        lines.append(f"{name}: {text.removesuffix('...' + chr(10)).rstrip()}  # {explanation}\n")
    return "".join(lines)


def parse_duration(text: str) -> float:
    """Seconds of "90s", "30m", "1.5h" or "1h30m"."""
    found = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", text.replace(" ", ""))
    try:
        seconds = sum(float(number) * unit for number, unit in zip(found.groups(), (3600, 60, 1), strict=True) if number)
    except (AttributeError, ValueError):
        seconds = 0.0
    if seconds <= 0:
        raise ValueError(f"time must be a duration with units, such as 90s, 30m or 1h30m, got {text!r}")
    return seconds


def check_keys(owner: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Unknown names raise, with the nearest known one."""
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"
            raise ValueError(f"{owner} has no field {str(name)!r}; {hint}")


def _apply_override(values: dict[str, Any], text: str) -> None:
    key, separator, raw = text.partition("=")
    if not separator or not key.strip():
        raise ValueError(f"overrides are written key=value, got {text!r}")
    *path, last = key.strip().split(".")
    for name in path:
        inner = values.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{text!r}: {name} is {inner!r}, not a mapping")
        values = inner
    try:
        values[last] = yaml.safe_load(raw)
    except yaml.YAMLError:
        raise ValueError(f"{text!r}: the value is not YAML; quote it if it has brackets or colons") from None


def _converted(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values in the types of their settings; a value that cannot be one is an error with the name of the setting."""
    converted = {}
    for name, hint, explanation in settings():
        if name in values:
            try:
                converted[name] = _as_type(values[name], hint)
            except ValueError:
                raise ValueError(f"{name} must be {_describe(hint)}, got {values[name]!r} ({explanation})") from None
    return converted


def _as_type(value: Any, hint: Any) -> Any:
    """The value, if it fits the annotation: an int also fits float, and so does '1e-3', which YAML reads as text."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        for member in typing.get_args(hint):
            try:
                return _as_type(value, member)
            except ValueError:
                continue
        raise ValueError
    if origin is Literal:
        if value in typing.get_args(hint):
            return value
        raise ValueError
    if origin is list:
        if isinstance(value, list):
            return [_as_type(item, *typing.get_args(hint)) for item in value]
        raise ValueError
    if hint is float and not isinstance(value, bool) and isinstance(value, (int, float, str)):
        return float(value)  # a text that is no number raises ValueError as well
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ValueError


def _is_batch(value: int | dict) -> bool:
    if not isinstance(value, dict):
        return value >= 1
    return len(value) == 1 and value.keys() <= {"atoms", "edges"} and all(type(most) is int and most >= 1 for most in value.values())


def _is_stage(value: dict) -> bool:
    numbers = all(
        isinstance(number, (int, float)) and not isinstance(number, bool) and 0 <= number < float("inf") for number in value.values()
    )
    known = {"start"} < value.keys() <= {"start", *PROPERTIES}
    return not value or (known and numbers and 0 < value["start"] < 1 and any(value[name] > 0 for name in value if name != "start"))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_share(value: Any) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return 0 <= value < 1 or (value >= 1 and value == int(value))
    return isinstance(value, (str, list))


def _describe(hint: Any) -> str:
    names = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        dict: "a mapping {key: value}",
        type(None): "null",
    }
    if typing.get_origin(hint) is Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is list:
        return "a list"
    if typing.get_args(hint):
        return " or ".join(_describe(member) for member in typing.get_args(hint))
    return names[hint]


def _weight(name: str, value: Any) -> float | str:
    try:
        number = value if value == "auto" else _as_type(value, float)
    except ValueError:
        raise ValueError(f"loss.{name} must be a number or auto, got {value!r}") from None
    if number != "auto" and not 0 <= number < float("inf"):
        raise ValueError(f"loss.{name} must be 0 or more, got {value!r}")
    return number

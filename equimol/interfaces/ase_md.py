"""Molecular dynamics through ASE: one structure, one potential, a trajectory that any ASE user can read.

A run that goes wrong stops with the reason; the last good frame is the last one of its trajectory.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms, units
from ase.calculators.singlepoint import SinglePointCalculator

from equimol.data.frame import Frame
from equimol.data.statistics import is_isolated_atom
from equimol.interfaces.ase import EquiMolCalculator, read_inputs
from equimol.models.base import Potential
from equimol.models.uncertainty import ENERGY_UNCERTAINTY

THERMOSTATS = ("langevin", "nve")
SUFFIXES = (".extxyz", ".xyz", ".traj")


class MDError(RuntimeError):
    """A simulation that must not go on; says the step, the reason, and where the last good frame is."""


@dataclass(frozen=True)
class MDResult:
    """What a run measured, one number per step, the start not counted.

    `drift` is the slope of a straight line through the total energy, in eV per atom and ps; None with a thermostat, which
    exchanges energy on purpose. `uncertainties` are one standard deviation of the potential energy each, of a model that tells it.
    """

    steps: int
    ms_per_step: float  # integration and forces; writing the trajectory not counted
    drift: float | None
    temperatures: np.ndarray  # K
    energies: np.ndarray  # potential + kinetic, eV
    atoms: Atoms  # the end of the run, with velocities
    trajectory: Path | None
    uncertainties: np.ndarray | None = None  # eV

    @property
    def mean_temperature(self) -> float:
        return float(self.temperatures.mean())

    def __str__(self) -> str:
        none = "no drift with a thermostat, it exchanges energy; --thermostat nve measures it"
        drift = f" ({none})" if self.drift is None else f", energy drift {self.drift:.1e} eV/atom/ps"
        where = "" if self.trajectory is None else f"; trajectory in {self.trajectory}"
        speed = f"{self.steps} steps, {self.ms_per_step:.2f} ms per step, mean temperature {self.mean_temperature:.0f} K"
        return f"{speed}{drift}{self._doubt()}{where}"

    def _doubt(self) -> str:
        if self.uncertainties is None:
            return ""
        worst = int(self.uncertainties.argmax())
        middle, most = 1e3 * np.median(self.uncertainties), 1e3 * self.uncertainties[worst]
        return f", energy uncertainty {middle:.3g} meV in the median and {most:.3g} meV at most, in step {worst + 1}"


def run_md(
    model_or_path: Potential | str | Path,
    atoms: Atoms,
    temperature: float,  # K
    steps: int,
    timestep_fs: float | None = None,
    thermostat: str = "langevin",
    *,
    friction: float = 0.01,  # 1/fs, used by langevin
    trajectory: str | Path | None = None,
    interval: int = 10,
    seed: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    data_set: str | None = None,
    progress: bool = True,
    log: Callable[[str], Any] = print,
) -> MDResult:
    """Run molecular dynamics from `atoms`, which stay as they are, and print drift and speed.

    `langevin` (default) keeps the temperature; `nve` is velocity Verlet at constant energy, and from a relaxed structure its mean
    temperature will be about half of `temperature`. Momenta in `atoms` are kept, else drawn from Maxwell and Boltzmann with
    `seed`, scaled to the temperature, the centre of mass at rest. The time step is 1 fs, or 0.5 fs where there is hydrogen. A
    frame is written at every `interval` steps; an older trajectory of the same name is renamed first.
    """
    timestep_fs = timestep_fs if timestep_fs is not None else (0.5 if 1 in atoms.numbers else 1.0)
    _check(temperature, steps, timestep_fs, thermostat, interval)
    rng = np.random.default_rng(seed)
    atoms = _bare_copy(atoms)
    atoms.calc = EquiMolCalculator(model_or_path, device=device, dtype=dtype, data_set=data_set)
    if not atoms.get_momenta().any():
        _draw_momenta(atoms, temperature, rng)
    if not atoms.calc.model.conservative:
        log("warning: the forces of this model are no gradient of its energy: no time step conserves it; train a conservative one for that")
    integrator = _integrator(atoms, thermostat, timestep_fs, temperature, friction, rng)
    with TrajectoryWriter(trajectory, log) as writer:
        bath = f"Langevin thermostat, friction {friction:g}/fs" if thermostat == "langevin" else "constant energy"
        log(f"MD of {atoms.get_chemical_formula()}: {steps} steps of {timestep_fs:g} fs at {temperature:g} K, {bath}")
        run = _Run(atoms, integrator, writer, timestep_fs, limit=10 * temperature + 1000)
        run.go(steps, interval, progress)
    drift = None if thermostat == "langevin" else energy_drift(run.energies, len(atoms), timestep_fs)
    temperatures, energies = np.array(run.temperatures), np.array(run.energies)
    doubt = np.array(run.uncertainties) if run.uncertainties else None
    result = MDResult(steps, run.seconds / steps * 1e3, drift, temperatures, energies, atoms, writer.path, doubt)
    log(str(result))
    return result


def read_structure(path: str | Path, frame: int = 0, log: Callable[[str], Any] = print) -> Atoms:
    """One structure of a file, with what ASE keeps of it: momenta, masses and constraints too.

    Data sets often begin with isolated atoms, which are hardly meant: where the first frame is one and others follow, `log` is told.
    """
    if not Path(path).is_file():
        raise ValueError(f"there is no structure file {path}; check the path")
    atoms = _read_frame(path, frame)
    if frame == 0 and is_isolated_atom(Frame(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc, info=atoms.info)):
        with contextlib.suppress(ValueError):
            _read_frame(path, 1)
            log(f"note: frame 0 of {path} is an isolated atom, and the file holds more; choose another one with --frame")
    return atoms


def _read_frame(path: str | Path, frame: int) -> Atoms:
    import ase.io

    try:
        return ase.io.read(path, index=frame, do_not_split_by_at_sign=True)
    except (IndexError, StopIteration) as error:
        raise ValueError(f"{path} has no frame {frame}; frames are counted from 0") from error
    except Exception as error:  # a parser of foreign text: any of its errors is a fault of the file
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise ValueError(f"{path} cannot be read as a structure ({reason}); check that it is complete and of a format ASE knows") from error


def energy_drift(energies: list[float] | np.ndarray, atoms: int, timestep_fs: float) -> float:
    """Slope of a straight line through total energies, one per step, in eV per atom and ps. NaN for fewer than two of them."""
    if len(energies) < 2:
        return float("nan")
    times = np.arange(len(energies)) * timestep_fs * 1e-3
    centred = np.asarray(energies) - np.mean(energies)  # a total energy of 1e5 eV leaves few digits for its slope
    return float(np.polyfit(times - times.mean(), centred / atoms, 1)[0])


class _State(NamedTuple):
    step: int
    positions: np.ndarray
    momenta: np.ndarray
    results: dict[str, Any]


class _Run:
    """The loop, with the last good state kept beside it."""

    def __init__(self, atoms: Atoms, integrator: Any, writer: TrajectoryWriter, timestep_fs: float, limit: float):
        self.atoms, self.integrator, self.writer, self.timestep_fs, self.limit = atoms, integrator, writer, timestep_fs, limit
        self.energies: list[float] = []
        self.temperatures: list[float] = []
        self.uncertainties: list[float] = []  # none where the model has none
        self.seconds = 0.0
        self.good: _State | None = None  # the last that passed the checks

    def go(self, steps: int, interval: int, progress: bool) -> None:
        from tqdm import tqdm

        forces = self._forces(self.atoms.get_forces, 0)
        self._accept(0)
        self._write_good()
        try:
            for step in tqdm(range(1, steps + 1), desc="MD", unit="step", disable=not progress, mininterval=0.5):
                start = time.perf_counter()
                forces = self._forces(lambda known=forces: self.integrator.step(known), step)
                self.seconds += time.perf_counter() - start
                temperature, energy = self._accept(step)
                self.temperatures.append(temperature)
                self.energies.append(energy)
                if ENERGY_UNCERTAINTY in self.good.results:
                    self.uncertainties.append(self.good.results[ENERGY_UNCERTAINTY])
                if step % interval == 0 or step == steps:
                    self._write_good()
        except KeyboardInterrupt:
            self._write_good()
            raise

    def _forces(self, advance: Callable[[], np.ndarray], step: int) -> np.ndarray:
        try:
            return advance()
        except Exception as error:  # whatever it is, the last good frame comes first
            raise self._stopped(step, str(error) or type(error).__name__) from error

    def _accept(self, step: int) -> tuple[float, float]:
        """Check the new state and keep it as the last good one; its temperature (K) and total energy (eV)."""
        temperature = self.atoms.get_temperature()
        energy = self.atoms.calc.results["energy"] + self.atoms.get_kinetic_energy()
        if not np.isfinite(energy):
            raise self._stopped(step, f"the total energy became {energy} eV")
        if temperature > self.limit:
            raise self._stopped(step, f"the temperature rose to {temperature:.0f} K (limit {self.limit:.0f} K): the structure explodes")
        self.good = _State(step, self.atoms.get_positions(), self.atoms.get_momenta(), self.atoms.calc.results)
        return temperature, energy

    def _write_good(self) -> None:
        if self.good is not None:
            frame = self.atoms.copy()
            frame.set_positions(self.good.positions, apply_constraint=False)
            frame.set_momenta(self.good.momenta, apply_constraint=False)
            frame.info |= {"step": self.good.step, "time_fs": self.good.step * self.timestep_fs}
            results = dict(self.good.results)
            if ENERGY_UNCERTAINTY in results:  # ASE's list of results is closed
                frame.info[ENERGY_UNCERTAINTY] = results.pop(ENERGY_UNCERTAINTY)
            frame.calc = SinglePointCalculator(frame, **results)
            self.writer.write(frame)

    def _stopped(self, step: int, reason: str) -> MDError:
        if self.good is None:
            return MDError(f"molecular dynamics did not start: {reason.rstrip('.')}")
        self._write_good()
        kept = f", kept as the last frame of {self.writer.path}" if self.writer.path else ""
        where = f"the last good step is {self.good.step}{kept}"
        advice = "try a shorter time step, a relaxed start, or a model trained on such structures"
        return MDError(f"molecular dynamics stopped at step {step}: {reason.rstrip('.')}; {where}; {advice}")


class TrajectoryWriter:
    """Frames to an .extxyz, .xyz or .traj file, each whole and handed to the disk before the next step; nowhere if the path is None.

    An older file of that name is renamed when the first frame comes, not before: a run that cannot start leaves it alone.
    """

    def __init__(self, path: str | Path | None, log: Callable[[str], Any] = print):
        self.path, self._log = None if path is None else Path(path), log
        self._file: Any = None
        self._written: int | None = None
        if self.path is None:
            return
        if self.path.suffix not in SUFFIXES:
            raise ValueError(f"a trajectory ends in {', '.join(SUFFIXES)}, got {self.path.name!r}; choose such a name")
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, frame: Atoms) -> None:
        """Add a frame, unless its step is the one that was written last."""
        if self.path is None or frame.info["step"] == self._written:
            return
        try:
            if self._file is None and self.path.exists():
                older = _free_name(self.path)
                self.path.rename(older)
                self._log(f"the older {self.path} is now {older}")
            if self.path.suffix == ".traj":
                self._add_binary(frame)
            else:
                self._add_text(frame)
        except OSError as error:
            reason = error.strerror or error
            raise MDError(f"{self.path} could not be written: {reason}; the frames before are kept; make room and start again") from error
        self._written = frame.info["step"]

    def _add_binary(self, frame: Atoms) -> None:
        if self._file is None:
            from ase.io.trajectory import Trajectory

            self._file = Trajectory(self.path, "w")
        self._file.write(frame)

    def _add_text(self, frame: Atoms) -> None:
        from ase.io.extxyz import write_xyz

        if self._file is None:
            self._file = self.path.open("wb", buffering=0)
        text = io.StringIO()
        write_xyz(text, frame)
        before = self._file.tell()
        try:
            data = memoryview(text.getvalue().encode())
            while data:
                data = data[self._file.write(data) :]
        except OSError:
            os.truncate(self.path, before)  # half a frame would make the whole file unreadable
            raise

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()


def _check(temperature: float, steps: int, timestep_fs: float, thermostat: str, interval: int) -> None:
    if not (np.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature must be zero or more (K), got {temperature}")
    if steps < 1 or interval < 1:
        raise ValueError(f"steps and interval must be at least 1, got {steps} and {interval}")
    if not (np.isfinite(timestep_fs) and timestep_fs > 0):
        raise ValueError(f"the time step must be positive (fs), got {timestep_fs}; 0.5 suits molecules with hydrogen")
    if thermostat not in THERMOSTATS:
        raise ValueError(f"thermostat must be one of {', '.join(THERMOSTATS)}, got {thermostat!r}")


def _bare_copy(atoms: Atoms) -> Atoms:
    """The structure alone: labels that came with it from a data set would be written into every frame, and be wrong there."""
    bare = Atoms(numbers=atoms.numbers, positions=atoms.positions, cell=atoms.cell, pbc=atoms.pbc, constraint=atoms.constraints)
    bare.info = dict(read_inputs(atoms))
    if atoms.has("masses"):
        bare.set_masses(atoms.get_masses())
    bare.set_momenta(atoms.get_momenta(), apply_constraint=False)
    return bare


def _draw_momenta(atoms: Atoms, temperature: float, rng: np.random.Generator) -> None:
    masses = atoms.get_masses()[:, None]
    momenta = rng.standard_normal((len(atoms), 3)) * np.sqrt(masses * units.kB * temperature)
    if len(atoms) > 1:
        momenta -= masses / masses.sum() * momenta.sum(axis=0)
    atoms.set_momenta(momenta)
    if atoms.get_temperature() > 0:
        atoms.set_momenta(atoms.get_momenta() * np.sqrt(temperature / atoms.get_temperature()))


def _integrator(atoms: Atoms, thermostat: str, timestep_fs: float, temperature: float, friction: float, rng: np.random.Generator) -> Any:
    if thermostat == "nve":
        from ase.md.verlet import VelocityVerlet

        return VelocityVerlet(atoms, timestep_fs * units.fs)
    from ase.md.langevin import Langevin

    # fixcm=False: ASE's way of holding the centre of mass does not sample the right distribution
    return Langevin(atoms, timestep_fs * units.fs, temperature_K=temperature, friction=friction / units.fs, fixcm=False, rng=rng)


def _free_name(path: Path) -> Path:
    number = 1
    while (older := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    return older

"""Molecular dynamics conserves what it should, writes what ASE reads, and stops where it must."""

import ase.io
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule

from equimol.interfaces.ase import EquiMolCalculator
from equimol.interfaces.ase_md import MDError, TrajectoryWriter, energy_drift, read_structure, run_md
from equimol.models import LennardJones, LennardJonesConfig


@pytest.fixture
def argon():
    return bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 2, 2)


@pytest.fixture
def model():
    return LennardJones(LennardJonesConfig(cutoff=6.0))


@pytest.fixture
def run(model, argon):
    """run_md with a small crystal and nothing on the screen."""

    def call(**settings):
        options = {"temperature": 40.0, "steps": 20, "timestep_fs": 5.0, "progress": False, "log": lambda line: None} | settings
        return run_md(options.pop("model", model), options.pop("atoms", argon), **options)

    return call


def test_constant_energy_is_constant(run, argon):
    result = run(steps=400, thermostat="nve")
    assert abs(result.drift) < 1e-5
    assert np.ptp(result.energies) / len(argon) < 1e-4
    assert 10 < result.mean_temperature < 40  # half of 40 K goes into the potential
    assert result.ms_per_step > 0


def test_energy_is_conserved_better_with_a_shorter_step(run):
    spread = [np.ptp(run(thermostat="nve", steps=int(200 / dt), timestep_fs=dt).energies) for dt in (8.0, 4.0)]
    assert spread[1] < 0.4 * spread[0]  # second order


def test_langevin_reaches_the_temperature(run):
    result = run(steps=600, temperature=30.0, friction=0.02)
    assert result.drift is None
    assert "no drift with a thermostat, it exchanges energy; --thermostat nve measures it" in str(result)
    assert result.temperatures[300:].mean() == pytest.approx(30.0, rel=0.15)


def test_a_seed_repeats_a_run(run):
    first, second, third = run(seed=3), run(seed=3), run(seed=4)
    assert np.array_equal(first.energies, second.energies)
    assert not np.array_equal(first.energies, third.energies)


def test_the_structure_given_stays_as_it_was(run, argon):
    before = argon.copy()
    result = run()
    assert np.array_equal(before.positions, argon.positions)
    assert argon.calc is None and not argon.has("momenta")
    assert not np.array_equal(result.atoms.positions, argon.positions)


def test_velocities_start_at_the_temperature_and_are_kept_where_there_are_some(run, argon):
    lines = []
    first = run(steps=1, timestep_fs=1e-3, thermostat="nve", log=lines.append)
    assert first.temperatures[0] == pytest.approx(40.0, rel=1e-3)
    assert np.abs(first.atoms.get_momenta().sum(axis=0)).max() < 1e-8
    moving = first.atoms.copy()
    moving.set_momenta(2 * moving.get_momenta())
    second = run(atoms=moving, steps=1, timestep_fs=1e-3, thermostat="nve")
    assert second.temperatures[0] == pytest.approx(160.0, rel=1e-3)
    assert "constant energy" in lines[0] and "ms per step" in lines[-1] and "drift" in lines[-1]


def test_hydrogen_asks_for_half_the_time_step():
    lines = []
    lj = LennardJones(LennardJonesConfig(elements=(1, 8), sigma=1.0))
    for structure in (molecule("H2O"), molecule("O2")):
        run_md(lj, structure, 10.0, 1, progress=False, log=lines.append)
    assert "steps of 0.5 fs" in lines[0] and "steps of 1 fs" in lines[2]


@pytest.mark.parametrize("suffix", [".extxyz", ".xyz", ".traj"])
def test_trajectories_are_what_ase_reads(run, tmp_path, suffix, model):
    result = run(steps=25, interval=10, trajectory=tmp_path / f"md{suffix}")
    frames = ase.io.read(tmp_path / f"md{suffix}", ":")
    assert [frame.info["step"] for frame in frames] == [0, 10, 20, 25]
    assert [frame.info["time_fs"] for frame in frames] == [0, 50, 100, 125]
    last = frames[-1]
    np.testing.assert_allclose(last.positions, result.atoms.positions, atol=1e-7)
    np.testing.assert_allclose(last.get_velocities(), result.atoms.get_velocities(), atol=1e-7)
    assert last.get_potential_energy() + last.get_kinetic_energy() == pytest.approx(result.energies[-1], abs=1e-6)
    np.testing.assert_allclose(last.get_forces(), result.atoms.get_forces(), atol=1e-7)
    np.testing.assert_allclose(last.get_stress(), result.atoms.get_stress(), atol=1e-7)
    assert result.trajectory == tmp_path / f"md{suffix}"


def test_labels_of_the_start_do_not_travel_with_the_frames(run, argon, tmp_path):
    argon.info |= {"REF_energy": 3.0, "charge": 1.0}
    argon.set_array("REF_forces", np.ones((len(argon), 3)))
    run(trajectory=tmp_path / "md.extxyz")
    frame = ase.io.read(tmp_path / "md.extxyz")
    assert "REF_energy" not in frame.info and "REF_forces" not in frame.arrays
    assert frame.info["charge"] == 1.0


def test_an_older_trajectory_is_kept(run, tmp_path):
    path = tmp_path / "md.extxyz"
    for _ in range(3):
        run(trajectory=path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["md.1.extxyz", "md.2.extxyz", "md.extxyz"]


def test_a_run_that_cannot_start_says_why_and_leaves_the_older_trajectory(run, argon, tmp_path):
    path = tmp_path / "md.extxyz"
    path.write_text("precious")
    argon.numbers[0] = 79
    with pytest.raises(MDError, match="did not start: the model does not know Au; .*with Au$"):
        run(atoms=argon, trajectory=path)
    assert [p.name for p in tmp_path.iterdir()] == ["md.extxyz"] and path.read_text() == "precious"


def test_constraints_hold(run, argon):
    from ase.constraints import FixAtoms

    argon.set_constraint(FixAtoms([0]))
    result = run(thermostat="nve")
    assert np.array_equal(result.atoms.positions[0], argon.positions[0])


def test_an_explosion_stops_with_the_last_good_frame(run, argon, tmp_path):
    argon.positions[0] = argon.positions[1] + [1.2, 0, 0]  # far too close
    with pytest.raises(MDError, match=r"stopped at step \d+: the temperature rose to .* last good step is \d+, kept .*md\.extxyz"):
        run(atoms=argon, trajectory=tmp_path / "md.extxyz", interval=1000)
    frames = ase.io.read(tmp_path / "md.extxyz", ":")
    assert np.isfinite(frames[-1].get_forces()).all()


class Breaking(EquiMolCalculator):
    """Fails after some calls."""

    calls_left = 7

    def calculate(self, *arguments, **settings):
        Breaking.calls_left -= 1
        if Breaking.calls_left < 0:
            raise MemoryError("out of memory")
        super().calculate(*arguments, **settings)


def test_a_failing_model_stops_with_the_last_good_frame(run, tmp_path, monkeypatch):
    monkeypatch.setattr("equimol.interfaces.ase_md.EquiMolCalculator", Breaking)
    with pytest.raises(MDError, match=r"stopped at step 7: out of memory; the last good step is 6, kept as the last frame"):
        run(trajectory=tmp_path / "md.extxyz", interval=100)
    assert [frame.info["step"] for frame in ase.io.read(tmp_path / "md.extxyz", ":")] == [0, 6]


def test_a_full_disk_keeps_whole_frames(argon, tmp_path, monkeypatch):
    path = tmp_path / "md.extxyz"
    argon.info["step"] = 0
    with TrajectoryWriter(path) as writer:
        writer.write(argon)
        real = writer._file

        class Full:
            def tell(self):
                return real.tell()

            def write(self, data):
                real.write(data[:100])
                raise OSError(28, "No space left on device")

            def close(self):
                real.close()

        writer._file = Full()
        argon.info["step"] = 1
        with pytest.raises(MDError, match="No space left on device; the frames before are kept"):
            writer.write(argon)
    assert len(ase.io.read(path, ":")) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature must be zero or more"),
        ({"temperature": float("nan")}, "temperature must be zero or more"),
        ({"steps": 0}, "steps and interval must be at least 1"),
        ({"timestep_fs": 0.0}, "time step must be positive"),
        ({"thermostat": "berendsen"}, "thermostat must be one of langevin, nve"),
        ({"trajectory": "md.pdb"}, "trajectory ends in"),
    ],
)
def test_wrong_settings_are_named(run, settings, message):
    with pytest.raises(ValueError, match=message):
        run(**settings)


def test_drift_is_the_slope_of_the_energy():
    energies = 1e5 + 2e-3 * np.arange(100)  # eV; 2 fs per step and 10 atoms: 1e-3 eV/fs
    assert energy_drift(energies, 10, 2.0) == pytest.approx(0.1, rel=1e-6)
    assert np.isnan(energy_drift([1.0], 1, 1.0))


def test_a_structure_is_read_with_its_velocities_and_charge(tmp_path):
    water = molecule("H2O")
    water.set_velocities(np.ones((3, 3)) * units.fs)
    water.info["charge"] = -1
    ase.io.write(tmp_path / "start.extxyz", [molecule("CO"), water])
    atoms = read_structure(tmp_path / "start.extxyz", 1)
    assert atoms.get_chemical_formula() == "H2O" and atoms.info["charge"] == -1
    np.testing.assert_allclose(atoms.get_momenta(), water.get_momenta(), atol=1e-7)
    with pytest.raises(ValueError, match="has no frame 2"):
        read_structure(tmp_path / "start.extxyz", 2)


def test_an_isolated_atom_at_the_head_of_a_data_set_is_noted(tmp_path):
    ase.io.write(tmp_path / "data.extxyz", [Atoms("O"), molecule("H2O")])
    ase.io.write(tmp_path / "atom.extxyz", Atoms("O"))
    lines = []
    assert len(read_structure(tmp_path / "data.extxyz", log=lines.append)) == 1
    assert len(lines) == 1 and "--frame" in lines[0]
    read_structure(tmp_path / "data.extxyz", 1, log=lines.append)
    read_structure(tmp_path / "atom.extxyz", log=lines.append)
    assert len(lines) == 1


def test_a_file_that_is_no_structure_is_named(tmp_path):
    (tmp_path / "start.xyz").write_text("3\nhalf a molecule\nO 0 0 0\n")
    with pytest.raises(ValueError, match=r"start\.xyz cannot be read as a structure"):
        read_structure(tmp_path / "start.xyz")
    with pytest.raises(ValueError, match="there is no structure file"):
        read_structure(tmp_path / "missing.xyz")


def test_one_atom_flies_straight(model):
    result = run_md(model, Atoms("Ar"), 100.0, 10, 1.0, "nve", progress=False, log=lambda line: None)
    assert result.temperatures.mean() == pytest.approx(100.0)

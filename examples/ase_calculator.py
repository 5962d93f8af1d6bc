"""Use a potential as an ASE calculator: energy, forces and stress of a crystal and of a molecule.

    python examples/ase_calculator.py runs/first/model.equimol

Without a file it takes an untrained model, which has the right symmetry and the wrong chemistry.
"""

import argparse

from ase.build import bulk, molecule

import equimol
from equimol.interfaces.ase import EquiMolCalculator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    options = parser.parse_args()
    model = equimol.load(options.model) if options.model else equimol.build_model("mace", elements=[1, 6, 8])

    ethanol = molecule("CH3CH2OH")
    ethanol.calc = EquiMolCalculator(model)
    print(f"ethanol: {ethanol.get_potential_energy():.6f} eV, largest force component {abs(ethanol.get_forces()).max():.4f} eV/Å")

    diamond = bulk("C", "diamond", a=3.57)
    diamond.calc = EquiMolCalculator(model)
    print("diamond: stress (xx yy zz yz xz xy)", diamond.get_stress().round(4), "eV/Å³")


if __name__ == "__main__":
    main()

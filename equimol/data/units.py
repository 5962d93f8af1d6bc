"""What files are written in, and the factors to eV and Å. Only `equimol.data.labels` applies them, once."""

import re
from collections.abc import Mapping

from ase import units as ase_units

from equimol.data.errors import DataError

OURS = {"length": "Å", "energy": "eV", "forces": "eV/Å", "stress": "eV/Å³"}  # what everything is in after reading

ENERGIES = {
    "ev": 1.0,
    "mev": 1e-3,
    "hartree": ase_units.Hartree,
    "ha": ase_units.Hartree,
    "rydberg": ase_units.Rydberg,
    "ry": ase_units.Rydberg,
    "kcal/mol": ase_units.kcal / ase_units.mol,
    "kj/mol": ase_units.kJ / ase_units.mol,
    "kilocalorie_per_mole": ase_units.kcal / ase_units.mol,
    "kilojoule_per_mole": ase_units.kJ / ase_units.mol,
}
LENGTHS = {"å": 1.0, "angstrom": 1.0, "ang": 1.0, "a": 1.0, "bohr": ase_units.Bohr, "nanometer": 10.0, "nm": 10.0}
PRESSURES = {"gpa": ase_units.GPa, "kbar": 0.1 * ase_units.GPa, "bar": 1e-4 * ase_units.GPa, "pa": 1e-9 * ase_units.GPa}


def factor(quantity: str, unit: str) -> float:
    """What a number in this unit is multiplied with to be in eV, Å. A minus in front turns the sign: "-kbar" is the stress of VASP.

    >>> factor("forces", "-hartree/bohr") < 0  # a gradient
    True
    """
    text = re.sub(r"\s", "", unit).lower().replace("ångström", "å").replace("·", "")
    sign, text = (-1.0, text[1:]) if text.startswith("-") else (1.0, text)
    found = {
        "length": LENGTHS.get(text),
        "energy": ENERGIES.get(text),
        "forces": _ratio(text, power=1),
        "stress": PRESSURES.get(text, _ratio(text, power=3)),
    }
    if quantity not in found:
        raise DataError(f"units are stated for {', '.join(found)}, got {quantity!r}; for example energy=hartree length=bohr")
    value = found[quantity]
    if value is None:
        raise DataError(f"unknown unit {unit!r} of {quantity}; for example {EXAMPLES[quantity]}, with a minus in front for the other sign")
    return sign * value


EXAMPLES = {
    "length": "Å, bohr, nm",
    "energy": "eV, hartree, rydberg, kcal/mol, kJ/mol",
    "forces": "eV/Å, hartree/bohr, kcal/mol/Å",
    "stress": "eV/Å³, GPa, kbar, hartree/bohr³",
}


def stated(units: Mapping[str, str]) -> dict[str, str]:
    """The units with those that follow from them: forces and stress are derivatives of the energy by lengths."""
    whole = dict(units)
    for quantity, unit in units.items():
        factor(quantity, unit)  # refuses what is unknown
    if {"energy", "length"} & units.keys():
        energy, length = units.get("energy", OURS["energy"]), units.get("length", OURS["length"])
        whole = {"forces": f"{energy}/{length}", "stress": f"{energy}/{length}³", **whole}
    return whole


def _ratio(text: str, power: int) -> float | None:
    """An energy per length to the power."""
    energy, _, length = text.rpartition("/")
    if power == 3:
        length, marked = re.subn(r"(³|\^3|\*\*3|3)$", "", length)
        if not marked:
            return None
    if energy in ENERGIES and length in LENGTHS:
        return ENERGIES[energy] / LENGTHS[length] ** power
    return None

"""What a data set can state of a structure: one row per target quantity, one per model input.

Reading, batching, loss, metrics and plots loop over these tables, so a new quantity is one new row.
"""

from typing import Literal, NamedTuple


class Property(NamedTuple):
    """One quantity. `shape` is that of a single system or atom: forces are (3,), not (atoms, 3)."""

    per: Literal["system", "atom"]
    shape: tuple[int, ...]
    unit: str

    def label_shape(self, num_atoms: int) -> tuple[int, ...]:
        """Shape of the label of one structure, without a batch axis."""
        return (num_atoms, *self.shape) if self.per == "atom" else self.shape


PROPERTIES = {
    "energy": Property(per="system", shape=(), unit="eV"),
    "forces": Property(per="atom", shape=(3,), unit="eV/Å"),
    "stress": Property(per="system", shape=(3, 3), unit="eV/Å³"),  # sign as in ASE: positive = wants to contract; (1/V) dE/dstrain
}

INPUTS = {
    "charge": Property(per="system", shape=(), unit="e"),
    "spin": Property(per="system", shape=(), unit="2S+1"),  # the multiplicity: 1 for a closed shell
    "data_set": Property(per="system", shape=(), unit="1"),  # number of the data set whose level of theory is meant, from 0
}

"""LAMMPS: `pair_style equimol`, a C++ plugin with a licence of its own, and how it is compiled."""

"""Checks of the data doctor on stress, and on labels that are exactly zero."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import permutations

import numpy as np

from equimol.data import evidence
from equimol.data.diagnosis import OK, PROBLEM, UNKNOWN, DataSet, Finding
from equimol.data.evidence import Surroundings
from equimol.data.frame import Frame


def check_zeros(data: DataSet) -> Iterable[Finding]:
    """Labels that are exactly zero because somebody had none."""
    troubles, counted = [], []
    for name in ("energy", "forces", "stress"):
        there = [n for n, frame in enumerate(data.frames) if name in frame.labels and (name != "forces" or len(frame.numbers) > 1)]
        zero = [n for n in there if not data.frames[n].labels[name].any()]
        if name == "forces":
            zero = [n for n in zero if not _is_symmetric(data.around[n])]
        if there:
            counted.append(f"{len(zero)} of {len(there)} {name}")
        if len(zero) > max(1, 0.002 * len(there)) or (zero and len(zero) == len(there)):
            troubles.append(f"{len(zero)} of {len(there)} {name} labels are exactly zero, such as that of {data.frames[zero[0]].source}")
    if troubles:
        yield Finding("zero labels", PROBLEM, "; ".join(troubles), "remove these labels: an absent label is left out, not set to zero")
    else:
        yield Finding("zero labels", OK, (", ".join(counted) or "no labels") + " exactly zero without reason")


def _is_symmetric(near: Surroundings | None) -> bool:
    """Whether the surroundings of every atom pull evenly, as in a perfect crystal, where forces are exactly zero."""
    if near is None or not len(near.distances):
        return True
    weight = np.exp(-near.distances)
    pull = np.zeros((int(near.receivers.max()) + 1, 3))
    np.add.at(pull, near.receivers, (weight / near.distances)[:, None] * near.vectors)
    return bool(np.abs(pull).max() < 1e-3 * weight.sum() / len(pull))


def check_stress(data: DataSet) -> Iterable[Finding]:
    """Unit, sign and order of the components: against the forces, and against energies of strained cells."""
    labelled = [frame for frame in data.frames if "stress" in frame.labels and frame.labels["stress"].any()]
    if not labelled:
        yield Finding("stress unit", UNKNOWN, "no stress")
        return
    frames, around = data.sample()
    kept = [n for n, frame in enumerate(frames) if "stress" in frame.labels and frame.labels["stress"].any()]
    frames, around = [frames[n] for n in kept], [around[n] for n in kept]
    scale = evidence.stress_scale(frames, around)
    strain = evidence.energy_over_strain_work(pair for pair in data.pairs if {"stress"} <= pair[0].labels.keys() & pair[1].labels.keys())
    fitted = data.pair_fit and evidence.stress_over_pair_stress(data.pair_fit)
    yield _judge_stress_unit(labelled, scale, strain)
    yield _judge_stress_sign(strain, fitted)
    yield _judge_stress_order(fitted)


def _judge_stress_unit(frames: Sequence[Frame], scale: tuple[float, int] | None, strain: evidence.Consistency | None) -> Finding:
    ratios, texts = [], []
    if strain is not None and strain.agreeing >= 0.5 and strain.pairs >= 8:
        ratios.append(1 / abs(strain.slope))
        texts.append(
            f"the work of the stress is {abs(1 / strain.slope):.3g} times the change of energy of strained cells ({strain.pairs} pairs)"
        )
    if scale is not None:
        ratios.append(scale[0])
        texts.append(f"stress is {scale[0]:.2g} times what the forces make one expect ({scale[1]} frames; 0.1 to 8 in matter)")
    typical = float(np.median([np.abs(frame.labels["stress"]).max() for frame in frames]))
    texts.append(f"half of the frames have more than {typical:.2g} eV/Å³ ({160.2 * typical:.2g} GPa)")
    ratio = ratios[0] if ratios else (typical / 0.02 if typical > 1.0 else 1.0)  # 160 GPa are beyond what solids are calculated at
    if ratio > 15:
        unit = "kbar" if ratio > 500 else "GPa"
        return Finding(
            "stress unit", PROBLEM, "; ".join(texts), f"state the unit, which may be --units stress={unit} (of VASP: stress=-kbar)"
        )
    if ratios and ratio < 0.04:
        return Finding("stress unit", PROBLEM, "; ".join(texts), "state the unit, which may be --units stress=hartree/bohr³")
    return Finding("stress unit", OK if ratios else UNKNOWN, "; ".join(texts))


def _judge_stress_sign(strain: evidence.Consistency | None, fitted: evidence.StressEvidence | None) -> Finding:
    texts, signs = [], []
    if strain is not None and strain.agreeing >= 0.5 and strain.pairs >= 8:
        texts.append(f"energies of strained cells change by {strain.slope:.3g} times the work of the stress ({strain.pairs} pairs)")
        signs.append(strain.slope)
    if fitted is not None:
        texts.append(f"correlation with the stress of pair forces fitted to the forces: {fitted.correlation:+.2f} ({fitted.frames} frames)")
        if abs(fitted.correlation) > max(0.25, 2.5 / np.sqrt(fitted.frames)):
            signs.append(fitted.correlation)
    if not signs:
        return Finding("stress sign", UNKNOWN, "; ".join(texts) or "no strained cells, and too few forces")
    if signs[0] < 0:
        remedy = "turn the sign: --units stress=-eV/Å³ (ours is that of ASE: positive where the cell wants to contract)"
        return Finding("stress sign", PROBLEM, "; ".join(texts), remedy)
    return Finding("stress sign", OK, "; ".join(texts))


def _judge_stress_order(fitted: evidence.StressEvidence | None) -> Finding:
    if fitted is None:
        return Finding("stress order", UNKNOWN, "needs the forces of cells that are sheared")
    sign = 1.0 if fitted.correlation >= 0 else -1.0
    scores = {order: sign * float(sum(fitted.shear[n, order[n]] for n in range(3))) / 3 for order in permutations(range(3))}
    ours = scores[0, 1, 2]
    best = max(scores, key=lambda order: scores[order])
    names = ("yz", "xz", "xy")
    text = f"shear components yz, xz, xy correlate by {ours:+.2f} with those that the forces make one expect"
    threshold = max(0.25, 2.5 / np.sqrt(fitted.frames))
    if scores[best] < threshold:
        return Finding("stress order", UNKNOWN, text + "; too little shear to tell")
    if scores[best] - ours > max(0.35 * scores[best], 1 / np.sqrt(fitted.frames)):
        text += f", but by {scores[best]:+.2f} in the order {', '.join(names[n] for n in best)}"
        return Finding(
            "stress order", PROBLEM, text, "write the full matrix xx xy xz yx yy yz zx zy zz (six numbers: ASE has yz xz xy, VASP xy yz zx)"
        )
    return Finding("stress order", OK, text)

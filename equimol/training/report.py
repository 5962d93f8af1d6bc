"""One HTML page about one run: errors, learning curves, parity plots, worst structures, data and settings.

It reads only the files of the run folder, so it can be written during a run, after a crash, or on another machine. Figures are
inline SVG whose colours are CSS variables: one page serves light and dark screens and needs no network.
"""

import csv
import json
import math
import re
import time
import zipfile
from html import escape
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import numpy as np

from equimol.data.atomic import write_atomically

SPLITS = ("test", "valid", "train")  # the order of interest: unseen data first
MANY_POINTS = 1500  # above it a parity plot shows counts in hexagons: a small page, and no cloud that hides its own middle
WORST = 10

# Matplotlib draws with these stand-ins; svg() turns them into CSS variables, which the style sheet sets for light and dark.
INK, MUTED, LINE, BLUE, ORANGE, GREEN, VIOLET = COLOURS = [f"#010a0{i}" for i in range(7)]
VARIABLES = dict(zip(COLOURS, ("--ink", "--muted", "--line", "--blue", "--orange", "--green", "--violet"), strict=True))

Errors = dict[str, dict[str, float]]  # split -> figure -> value
Columns = dict[str, np.ndarray]  # of log.csv (float64, one row per line) or of a predictions file


def write_report(run_dir: Path) -> Path:
    """The page run_dir/report.html, rewritten from what the folder holds now.

    A missing or damaged input is named on the page and costs only its own section; only a missing folder is an error.
    """
    run_dir = Path(run_dir)
    if not run_dir.is_dir():
        raise ValueError(f"a report needs a run folder, {run_dir} is not one; pass the folder that training wrote (`out` in its settings)")
    page = run_dir / "report.html"
    write_atomically(page, render(run_dir))
    return page


def render(run_dir: Path) -> str:
    """The page as text."""
    notes: list[str] = []
    summary = read_json(run_dir / "summary.json", [])
    settings, data = read_text(run_dir / "config.yaml", notes), read_text(run_dir / "data.txt", notes)
    frames = {split: n for split, n in dict(summary.get("frames", {})).items() if n}
    paths = {split: run_dir / f"predictions_{split}.npz" for split in SPLITS}
    notes += [f"No {split} split" for split, path in paths.items() if split not in frames and not path.exists()]
    errors = read_errors(run_dir / "errors.json", notes)
    log = read_log(run_dir / "log.csv", notes)
    predictions = {split: p for split, path in paths.items() if (p := read_predictions(path, notes, split in frames))}
    name = escape(run_dir.resolve().name)
    body = [
        f"<header><p>EquiMol training report</p><h1>{name}</h1><p class=muted>{escape(subtitle(settings, summary))}</p>",
        f"<p class=muted>{escape(str(summary.get('weights_saved', 'Training has not finished')))}.</p></header>",
        headline(errors, log, summary),
        *(f"<p class=missing>{escape(note)}.</p>" for note in notes),
        section("Errors", error_table(errors)),
        section("Learning curves", learning_curves(log)),
        section("Parity", parity(predictions)),
        section("Worst structures", worst_structures(predictions)),
        section("Data", split_sizes(frames, predictions) + (f"<pre>{escape(data)}</pre>" if data else "")),
        section("Settings", f"<details><summary>config.yaml</summary><pre>{escape(settings)}</pre></details>" if settings else ""),
        f"<footer>Written {time.strftime('%Y-%m-%d %H:%M')} from the files in {escape(str(run_dir))}.</footer>",
    ]
    return PAGE.replace("{title}", name).replace("{body}", "\n".join(body))


# --- what the run folder holds -------------------------------------------------------------------------------------------------


def read_text(path: Path, notes: list[str]) -> str:
    """Text of a file; empty, with a note, where there is none."""
    if not path.exists():
        notes.append(f"No {path.name} in the run folder")
        return ""
    return path.read_text(encoding="utf-8", errors="replace").strip()


def read_json(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object; empty, with a note, where there is none or a damaged one."""
    text = read_text(path, notes)
    try:
        content = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        notes.append(f"{path.name} cannot be read ({error})")
        return {}
    return content if isinstance(content, dict) else {}


def read_errors(path: Path, notes: list[str]) -> Errors:
    """The numbers of errors.json, whatever figures they are."""
    rows = {split: row for split, row in read_json(path, notes).items() if isinstance(row, dict)}
    errors = {split: {key: float(value) for key, value in row.items() if isinstance(value, (int, float))} for split, row in rows.items()}
    return {split: row for split, row in errors.items() if row}


def read_log(path: Path, notes: list[str]) -> Columns:
    """Columns of numbers over increasing steps, NaN where a cell is empty."""

    def number(cell: str | None) -> float:
        try:
            return float(cell or "nan")
        except ValueError:
            return math.nan

    rows = list(csv.DictReader(StringIO(read_text(path, notes))))
    log = {key: np.array([number(row[key]) for row in rows]) for key in (rows[0] if rows else ()) if key}
    if "step" not in log:
        return {}
    order = np.argsort(log["step"], kind="stable")
    order = order[np.isfinite(log["step"][order])]
    return {key: column[order] for key, column in log.items()} if len(order) else {}


def read_predictions(path: Path, notes: list[str], expected: bool) -> Columns:
    """Arrays of one split, with forces and energies that belong to the same structures; empty where there are none."""
    if not path.exists():
        if expected:
            notes.append(f"No {path.name}: these frames have not been evaluated")
        return {}
    try:
        with np.load(BytesIO(path.read_bytes()), allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        natoms = arrays["natoms"]
        for key, rows in (("energy", len(natoms)), ("forces", natoms.sum())):
            if {len(arrays[f"{key}_true"]), len(arrays[f"{key}_pred"])} != {rows}:
                raise ValueError(f"{key} must have {rows} rows for {len(natoms)} structures")
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        notes.append(f"{path.name} cannot be read ({error})")
        return {}
    return arrays


def subtitle(settings: str, summary: dict[str, Any]) -> str:
    """Model, preset, cutoff, precision, machine: what tells one run from the next."""
    values = {key: value.strip() for key, value in re.findall(r"^(\w+):[ \t]*([^#\n]+)", settings, flags=re.MULTILINE)}
    words = [values[key] for key in ("model", "preset", "precision") if key in values]
    words += [f"cutoff {values['cutoff']} Å"] if "cutoff" in values else []
    return " · ".join([*words, *([str(summary["machine"])] if "machine" in summary else [])])


# --- sections ------------------------------------------------------------------------------------------------------------------


def headline(errors: Errors, log: Columns, summary: dict[str, Any]) -> str:
    """Tiles with the figures one asks for first: errors of the test split, or of the best substitute, which the tile names."""
    tiles = []
    split = next((split for split in SPLITS if split in errors), "")
    for quantity in ("forces_mae", "forces_rmse", "energy_mae", "energy_rmse"):
        key = next((key for key in errors.get(split, {}) if key.startswith(quantity)), None)  # per atom comes first
        if key:
            title, unit = name_and_unit(key)
            tiles.append((digits(errors[split][key]), unit, f"{title}, {split}"))
    if "parameters" in summary:
        tiles.append((f"{summary['parameters']:,}", "", "parameters"))
    if "seconds" in log and np.isfinite(log["seconds"]).any():
        known = np.isfinite(log["seconds"])
        seconds, steps = log["seconds"][known], log["step"][known]
        tiles.append((digits(seconds[-1] / 60), "min", "training"))
        if steps[-1] > steps[0]:
            tiles.append((digits(1e3 * (seconds[-1] - seconds[0]) / (steps[-1] - steps[0])), "ms", "per step, with validation"))
    return "<div class=tiles>" + "".join(f"<div><b>{v}</b> {unit}<span>{escape(label)}</span></div>" for v, unit, label in tiles) + "</div>"


def error_table(errors: Errors) -> str:
    keys = list(dict.fromkeys(key for row in errors.values() for key in row))
    splits = sorted(errors, key=lambda split: SPLITS.index(split) if split in SPLITS else len(SPLITS))
    return table(["split", *keys], [[split, *(errors[split].get(key, math.nan) for key in keys)] for split in splits])


def learning_curves(log: Columns) -> str:
    """Losses, errors of each quantity and the learning rate, from whatever columns there are."""
    figures = [curve_figure("loss", log, [key for key in log if key.startswith("loss") or key == "valid_loss"])]
    validation = [key for key in log if re.match(r"valid_.*_(mae|rmse)", key)]
    for quantity in dict.fromkeys(key.split("_")[1] for key in validation):
        keys = [key for key in validation if key.split("_")[1] == quantity]
        unit = name_and_unit(keys[0])[1]  # per atom where there are several
        figures.append(curve_figure(quantity, log, [key for key in keys if name_and_unit(key)[1] == unit], unit))
    figures.append(curve_figure("learning rate", log, ["lr"] if "lr" in log else []))
    return grid(figures)


def parity(predictions: dict[str, Columns]) -> str:
    """The most interesting split in full, the others folded."""
    blocks: list[str] = []
    for split, arrays in predictions.items():
        natoms = arrays["natoms"]
        true, predicted = arrays["energy_true"] / natoms, arrays["energy_pred"] / natoms
        offset = true[np.isfinite(true)].mean() if np.isfinite(true).any() else 0.0
        figures = [
            parity_figure("energy per atom, less their mean", "eV/atom", true - offset, predicted - offset),
            parity_figure("force components", "eV/Å", arrays["forces_true"], arrays["forces_pred"]),
        ]
        if "stress_pred" in arrays:
            figures.append(parity_figure("stress components", "eV/Å³", arrays["stress_true"], arrays["stress_pred"]))
        title = f"{split}: {len(natoms):,} structures, {natoms.sum():,} atoms"
        blocks.append(f"<details{'' if blocks else ' open'}><summary>{title}</summary>{grid(figures)}</details>")
    return "".join(blocks)


def worst_structures(predictions: dict[str, Columns]) -> str:
    """The largest force errors: mislabelled frames and missing chemistry show here first."""
    for split, arrays in predictions.items():
        natoms = arrays["natoms"]
        squares = ((arrays["forces_pred"] - arrays["forces_true"]) ** 2).sum(-1)  # per atom; NaN without a label
        parts = [part[np.isfinite(part)] for part in np.split(squares, np.cumsum(natoms)[:-1])]
        rmse = 1e3 * np.array([(part.mean() / 3) ** 0.5 if len(part) else math.nan for part in parts])
        largest = 1e3 * np.array([part.max() ** 0.5 if len(part) else math.nan for part in parts])
        energy = 1e3 * (arrays["energy_pred"] - arrays["energy_true"]) / natoms
        sources = arrays.get("source", np.array([f"{split} {i}" for i in range(len(natoms))]))
        order = np.argsort(-np.nan_to_num(rmse if np.isfinite(rmse).any() else np.abs(energy)), kind="stable")[:WORST]
        header = ["structure", "atoms", "forces_rmse_mev_per_angstrom", "largest_force_error_mev_per_angstrom", "energy_error_mev_per_atom"]
        rows = [[str(sources[i]), int(natoms[i]), rmse[i], largest[i], energy[i]] for i in order]
        return f"<p class=muted>Of the {split} split, predicted minus reference.</p>{table(header, rows)}"
    return ""


def split_sizes(frames: dict[str, int], predictions: dict[str, Columns]) -> str:
    sizes = frames or {split: len(arrays["natoms"]) for split, arrays in predictions.items()}
    return table(["split", "structures"], [[split, size] for split, size in sizes.items()])


# --- figures -------------------------------------------------------------------------------------------------------------------


def curve_figure(title: str, log: Columns, keys: list[str], unit: str = "") -> str:
    """Columns of the log over minutes with steps above, or over steps where there is no clock. Empty without data."""
    timed = "seconds" in log and np.isfinite(log["seconds"]).any()
    x = log["seconds"] / 60 if timed else log.get("step")
    curves = [(key, np.isfinite(x) & np.isfinite(log[key]) & (log[key] > 0)) for key in keys]  # the y axis is logarithmic
    curves = [(key, shown) for key, shown in curves if shown.any()]
    if not curves:
        return ""
    figure, axes = new_figure(4.2, 3.2)
    for (key, shown), colour in zip(curves, (BLUE, ORANGE, GREEN, VIOLET, INK) * len(curves), strict=False):
        marker = "o" if shown.sum() < 30 else None
        axes.plot(x[shown], log[key][shown], color=colour, lw=1.5, marker=marker, ms=3, label=name_and_unit(key)[0])
    axes.set_yscale("log")
    axes.set_xlabel("minutes" if timed else "steps")
    axes.set_ylabel(unit)
    if timed:
        step_axis(axes, log["step"][np.isfinite(x)], x[np.isfinite(x)])
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    return captioned(title, "", svg(figure, title))


def step_axis(axes, steps: np.ndarray, minutes: np.ndarray) -> None:
    """Ticks at round step numbers, each at the minute when it was reached: right also where the pace changed."""
    from matplotlib.ticker import MaxNLocator

    ticks = [tick for tick in MaxNLocator(5, integer=True).tick_values(steps[0], steps[-1]) if steps[0] <= tick <= steps[-1]]
    above = axes.twiny()
    above.set_xlim(axes.get_xlim())
    above.set_xticks(np.interp(ticks, steps, minutes), [f"{tick:,.0f}" for tick in ticks])
    above.set_xlabel("steps", color=MUTED, fontsize=8)
    above.tick_params(colors=MUTED, labelsize=8, length=2)
    above.spines[:].set_visible(False)


def parity_figure(title: str, unit: str, true: np.ndarray, predicted: np.ndarray) -> str:
    """Predicted over reference values, and below it the errors on a scale of their own, which the upper plot cannot show."""
    labelled = np.isfinite(true) & np.isfinite(predicted)
    if not labelled.any():
        return captioned(title, "no labels in this split", "")
    true, predicted = true[labelled], predicted[labelled]
    error = 1e3 * (predicted - true)
    figure, (upper, lower) = new_figure(3.6, 4.6, 2, ratios=(3, 1))
    low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
    margin = 0.04 * (high - low) or 1e-3
    for axes, y, cells in ((upper, predicted, (60, 60)), (lower, error, (60, 14))):
        if len(true) > MANY_POINTS:
            axes.hexbin(true, y, gridsize=cells, mincnt=1, bins="log", cmap=opacity_of_one_colour(), linewidths=0.1)
        else:
            axes.scatter(true, y, s=6, color=BLUE, alpha=0.5, linewidths=0)
        axes.set_xlim(low - margin, high + margin)
        axes.locator_params(axis="x", nbins=5)
    upper.set_ylim(low - margin, high + margin)
    upper.axline((low, low), slope=1, color=MUTED, lw=0.8, zorder=0)
    lower.axhline(0, color=MUTED, lw=0.8, zorder=0)
    upper.set_ylabel(f"predicted, {unit}")
    lower.set_ylabel(f"error, m{unit}")
    lower.set_xlabel(f"reference, {unit}")
    text = f"MAE {digits(np.abs(error).mean())}, RMSE {digits((error**2).mean() ** 0.5)} m{unit}; {len(true):,} values"
    return captioned(title, text, svg(figure, f"{title}: {text}"))


def opacity_of_one_colour():
    """A colour map for counts that reads well on white and on black."""
    from matplotlib.colors import ListedColormap, to_rgba

    return ListedColormap([to_rgba(BLUE, alpha) for alpha in np.linspace(0.2, 1, 32)])


def new_figure(width: float, height: float, rows: int = 1, ratios: tuple[int, ...] = (1,)):
    """A figure and its axes, outside pyplot, whose state a notebook may be using."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, 1, height_ratios=ratios)
    for one in figure.axes:
        one.grid(color=LINE, lw=0.6)
        for label in (one.xaxis.label, one.yaxis.label):
            label.set(color=MUTED, size=9)
        one.set_axisbelow(True)
        one.tick_params(which="both", colors=MUTED, labelsize=8, length=2)
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(LINE)
    return figure, axes


def svg(figure, label: str) -> str:
    """The figure as an SVG element with the page's colours and ids of its own: all figures of a page share one name space."""
    file = StringIO()
    figure.savefig(file, format="svg", transparent=True)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>f{id(figure):x}-", text)
    for stand_in, variable in VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)


# --- pieces of the page --------------------------------------------------------------------------------------------------------


def section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content or '<p class=muted>Nothing to show.</p>'}</section>"


def grid(figures: list[str]) -> str:
    figures = [figure for figure in figures if figure]
    width = 26 if len(figures) in (2, 4) else 19  # two in a row, or three
    return f"<div class=figures style='--width: {width}rem'>{''.join(figures)}</div>" if figures else ""


def captioned(title: str, text: str, drawing: str) -> str:
    return f"<figure><figcaption><b>{escape(title.capitalize())}</b> {escape(text)}</figcaption>{drawing}</figure>"


def table(header: list[str], rows: list[list[Any]]) -> str:
    """Names, then numbers: all of a column with as many decimals as its typical size needs for three digits."""
    columns = []
    for key, column in zip(header, zip(*rows, strict=True), strict=bool(rows)):
        if isinstance(column[0], str):
            columns.append([escape(value) for value in column])
            continue
        sizes = [math.log10(abs(value)) for value in column if math.isfinite(value) and value]
        decimals = min(4, max(0, 2 - math.floor(np.mean(sizes)))) if sizes else 0
        if isinstance(column[0], int) or key.endswith("cosine"):  # a count, or a figure just below 1
            decimals = 0 if isinstance(column[0], int) else 4
        columns.append([f"{value:,.{decimals}f}".replace("-", "−") if math.isfinite(value) else "–" for value in column])
    head = "".join(f"<th>{escape(name)}<i>{unit}</i></th>" for name, unit in map(name_and_unit, header))
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for cells in zip(*columns, strict=True))
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>" if rows else ""


def name_and_unit(key: str) -> tuple[str, str]:
    """("energy MAE", "meV/atom") of "energy_mae_mev_per_atom"; no unit where the name has none."""
    name, unit = re.fullmatch(r"(.+?)(?:_(m?ev(?:_per_\w+)?|percent))?", key).groups()
    for written, shown in (("ev", "eV"), ("_per_", "/"), ("angstrom3", "Å³"), ("angstrom", "Å"), ("percent", "%")):
        unit = (unit or "").replace(written, shown)
    return " ".join(word.upper() if word in ("mae", "rmse") else word for word in name.split("_")), unit


def digits(value: float) -> str:
    """Three digits without an exponent: 0.0123, 1.23, 123, 12,345."""
    decimals = 2 - math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    return f"{value:,.{min(6, max(0, decimals))}f}"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · EquiMol</title>
<style>
:root { color-scheme: light dark; --page: #fbfbf9; --card: #fff; --ink: #23262b; --muted: #666c75; --line: #e3e4e1;
  --blue: #2f6690; --orange: #c2702c; --green: #4b8a5b; --violet: #80589c }
@media (prefers-color-scheme: dark) { :root { --page: #16181b; --card: #1d2024; --ink: #dfe2e6; --muted: #98a0aa; --line: #33373d;
  --blue: #7fb2dc; --orange: #e0a06a; --green: #8cc29a; --violet: #bb9bd6 } }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif }
main { max-width: 1080px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem }
h1 { font-size: 1.9rem; line-height: 1.25; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin: 0 0 .8rem }
header p { margin: .2rem 0 } header p:first-child, summary { color: var(--blue); font-size: .95rem } section { margin-top: 2.6rem }
.muted, footer, figcaption { color: var(--muted); font-size: .9rem } footer { margin-top: 3rem; overflow-wrap: anywhere }
.missing { color: var(--muted); border-left: 3px solid var(--orange); padding-left: .7rem; margin: .8rem 0 }
.tiles div, figure, .wide, pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .75rem; margin: 1.6rem 0 }
.tiles div { color: var(--muted) } .tiles span { display: block; font-size: .85rem } .tiles span::first-letter { text-transform: uppercase }
.tiles b { color: var(--ink); font-size: 1.45rem; font-weight: 600; font-variant-numeric: tabular-nums }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, var(--width)), 1fr)); gap: 1rem }
figure { margin: 0; max-width: 34rem } figcaption b { display: block; color: var(--ink); font-weight: 600 }
svg { display: block; width: 100%; height: auto; margin-top: .4rem }
.wide, pre { overflow-x: auto } pre { font-size: .85rem; line-height: 1.45 }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .35rem .7rem; vertical-align: top } th:first-child, td:first-child { text-align: left }
th { font-weight: 600 } th i { display: block; font-style: normal; font-weight: 400; font-size: .85em; color: var(--muted) }
tbody tr { border-top: 1px solid var(--line) } details { margin-top: .8rem } summary { cursor: pointer; margin-bottom: .5rem }
</style></head><body><main>
{body}
</main></body></html>
"""

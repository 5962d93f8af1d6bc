"""What the data doctor finds, and what it looks at."""

from __future__ import annotations

import textwrap
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

from equimol.data import evidence
from equimol.data.errors import DataError
from equimol.data.evidence import Surroundings
from equimol.data.frame import Frame
from equimol.data.labels import Choice, LabelReport, Record

OK, WARNING, PROBLEM, UNKNOWN = "ok", "warning", "PROBLEM", "not checked"
SAMPLE = 200  # frames that the costly measurements look at


@dataclass(frozen=True)
class Finding:
    """The verdict of one check, the evidence in numbers, and what to do about it."""

    check: str
    verdict: str  # OK, WARNING, PROBLEM or UNKNOWN
    evidence: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings on a data set. Print it: `print(diagnosis)`."""

    report: LabelReport | None
    findings: tuple[Finding, ...]

    @property
    def problems(self) -> tuple[Finding, ...]:
        """What a training should not start with."""
        return tuple(finding for finding in self.findings if finding.verdict == PROBLEM)

    def __getitem__(self, check: str) -> Finding:
        return next(finding for finding in self.findings if finding.check == check)

    def __str__(self) -> str:
        width = max(len(finding.check) for finding in self.findings)
        lines = [str(self.report), ""] if self.report else []
        for finding in self.findings:
            head = f"{finding.check.ljust(width)}  {finding.verdict.ljust(11)}  "
            text = textwrap.wrap(finding.evidence, 100) or [""]
            if finding.remedy:
                text += [f"-> {line}" if not n else f"   {line}" for n, line in enumerate(textwrap.wrap(finding.remedy, 97))]
            lines += [head + text[0], *(" " * len(head) + line for line in text[1:])]
        counts = Counter(finding.verdict for finding in self.findings)
        lines += ["", ", ".join(f"{counts[verdict]} {verdict}" for verdict in (PROBLEM, WARNING, OK, UNKNOWN) if counts[verdict])]
        return "\n".join(lines)


@dataclass
class DataSet:
    """What the checks look at: the frames of all files, how they were labelled, and the neighbours of their atoms."""

    files: list[str]
    records: list[list[Record]]  # per file
    choices: list[Choice | None]
    reports: list[LabelReport | None]
    faults: list[DataError]  # what could not be read, or had no labels
    frames: list[Frame] = field(default_factory=list)  # no isolated atoms
    file_of: list[int] = field(default_factory=list)
    around: list[Surroundings | None] = field(default_factory=list)  # None where the cell allows no neighbours
    geometry_errors: dict[int, str] = field(default_factory=dict)

    @cached_property
    def pair_fit(self) -> evidence.PairFit | None:
        return evidence.fit_pair_forces(*self.sample())

    @cached_property
    def pairs(self) -> list[tuple[Frame, Frame]]:
        return evidence.similar_pairs(self.frames)

    def sample(self) -> tuple[list[Frame], list[Surroundings]]:
        """At most SAMPLE frames with their neighbours, from all of the set."""
        there = [n for n, near in enumerate(self.around) if near is not None and len(near.distances)]
        chosen = there[:: max(1, -(-len(there) // SAMPLE))]
        return [self.frames[n] for n in chosen], [near for n in chosen if (near := self.around[n]) is not None]

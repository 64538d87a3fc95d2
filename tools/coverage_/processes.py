"""Run a worker in a process of its own, with limits, and gather what it says while it runs.

A worker writes one line of JSON to stdout when a stage begins and one when it has ended. Whatever
ends the process (an error, a signal, the limit of time), the stages before are known, and the one
that was under way.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from fxprune.errors import FxpruneError

__all__ = [
    "Outcome",
    "Stage",
    "limit_memory",
    "measured_peak",
    "one_line",
    "report_stages",
    "run_worker",
]

GIB = 1 << 30
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")

Stage = tuple[str, Callable[[], Mapping[str, Any]]]


@dataclass(slots=True)
class Outcome:
    """What a worker said, and how it ended.

    Attributes
    ----------
    found : dict
        By stage, what those found that ended well.
    failed, reason : str
        The stage that did not, and why; empty when all ended well.
    seconds : float
        Of the whole process.
    """

    found: dict[str, Any] = field(default_factory=dict)
    failed: str = ""
    reason: str = ""
    seconds: float = 0.0


# -- in the worker
def limit_memory(gib: float) -> None:
    """Let this process fail, with a MemoryError or torch's own, when it needs more than this."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(gib * GIB), int(gib * GIB)))


def report_stages(stages: Iterator[Stage], stream: IO[str]) -> None:
    """Run stages in turn and say what they find; the first error ends it, and is said too."""
    for name, run in stages:
        _say(stream, {"begins": name})
        try:
            found = run()
        except Exception as error:  # noqa: BLE001  # every model's errors end in the table
            traceback.print_exc()
            _say(stream, {"fails": name, "reason": one_line(error)})
            return
        _say(stream, {"ends": name, "found": dict(found)})


def _say(stream: IO[str], message: Mapping[str, Any]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def one_line(error: BaseException) -> str:
    """Return an error in one line: for ours what, where and what was seen, without the hint.

    Where libraries are installed is left out of their paths.
    """
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return "out of the memory it may have"
    if isinstance(error, FxpruneError):
        parts = (error.what, error.where, error.seen)
        text = "; ".join(part.rstrip(".") for part in parts if part)
    else:
        text = f"{type(error).__name__}: {error}"
    return _short(text)


def _short(text: str) -> str:
    return re.sub(r"[^\s'\"]*/site-packages/", "", " ".join(text.split()))[:300]


def measured_peak(run: Callable[[], None]) -> tuple[float, float]:
    """Run something; return the resident memory before it and its peak meanwhile, in GiB.

    The kernel's high-water mark is reset before, where it lets us; otherwise it is that of the
    whole process so far.
    """
    if _RESET.exists():
        _RESET.write_text("5")
    before = _resident("VmRSS")
    run()
    return before, _resident("VmHWM")


def _resident(field_name: str) -> float:
    if not _STATUS.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / GIB for line in lines if line.startswith(field_name))


# -- beside the worker
def run_worker(command: Sequence[str], limit_seconds: float) -> Outcome:
    """Run a worker to its end, or end it with all its children at the limit."""
    started = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=said, stderr=errors, env=environment, start_new_session=True
        )
        late = False
        try:
            process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            if process.poll() is None:  # an interrupt of ours must not leave it behind, either
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        outcome = _outcome(said)
        if late:
            outcome.reason = f"not done after {limit_seconds:g} s"
        elif not outcome.reason and (process.returncode or outcome.failed):
            outcome.reason = _end(process.returncode, errors)
        if outcome.reason:
            outcome.failed = outcome.failed or "start"
    outcome.seconds = round(time.perf_counter() - started, 1)
    return outcome


def _outcome(said: IO[str]) -> Outcome:
    """Read a worker's lines; what libraries print in between is left out."""
    outcome = Outcome()
    said.seek(0)
    for line in said:
        try:
            message = json.loads(line)
        except ValueError:
            continue
        match message:
            case {"begins": name}:
                outcome.failed = name
            case {"ends": name, "found": found}:
                outcome.found[name] = found
                outcome.failed = ""
            case {"fails": name, "reason": reason}:
                outcome.failed, outcome.reason = name, reason
    return outcome


def _end(status: int, errors: IO[str]) -> str:
    if status < 0:
        return f"the process was ended by {signal.Signals(-status).name}"
    errors.seek(0)
    lines = errors.read().strip().splitlines()
    return _short(lines[-1]) if lines else f"the process ended with status {status}"

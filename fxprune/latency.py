"""Measured run times of ONNX files in onnxruntime, on the CPU.

A ratio of MACs is not a speed-up: kernels work in blocks of channels, and memory counts as well.
What a model gains is measured here, with a stated number of threads, batch size and repeats.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fxprune.errors import ConfigError
from fxprune.inputs import ExampleInputs, batch_size, check_count, normalize_inputs
from fxprune.runtime import OnnxModel

__all__ = ["Latency", "compare_latency", "onnx_latency"]


_RUNS_PER_TURN = 5


@dataclass(frozen=True, slots=True)
class Latency:
    """Run times of one model.

    Attributes
    ----------
    median_ms, p10_ms, p90_ms : float
        Median, 10th and 90th percentile of the time of one run, in milliseconds.
    threads : int
        Threads one operator could use.
    batch : int
        Examples per run.
    repeats : int
        Runs timed.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    threads: int
    batch: int
    repeats: int


def onnx_latency(
    path: str | os.PathLike[str],
    inputs: ExampleInputs,
    *,
    threads: int = 1,
    repeats: int = 30,
    warmup: int = 5,
) -> Latency:
    """Measure how long an ONNX file takes for one run.

    Parameters
    ----------
    path : str or PathLike
        The file.
    inputs : Tensor, tuple, list or dict
        As given to the exported model; their batch is the batch measured.
    threads : int
        Threads one operator may use.
    repeats : int
        Runs to time, at least 1.
    warmup : int
        Untimed runs before every five that are timed.

    Returns
    -------
    Latency
        Median and percentiles, in milliseconds.

    Raises
    ------
    LoadError
        When onnxruntime cannot load the file.
    InputError
        When the inputs do not fit it.
    ConfigError
        When a number is not an integer in its range.
    """
    found = compare_latency({"": path}, inputs, threads=threads, repeats=repeats, warmup=warmup)
    return found[""]


def compare_latency(
    paths: Mapping[str, str | os.PathLike[str]],
    inputs: ExampleInputs,
    *,
    threads: int = 1,
    repeats: int = 30,
    warmup: int = 5,
) -> dict[str, Latency]:
    """Measure several ONNX files in turns, so that a disturbance hits all alike.

    Parameters
    ----------
    paths : mapping of str to path
        The files by name.
    inputs : Tensor, tuple, list or dict
        Inputs for all of them.
    threads : int
        Threads one operator may use.
    repeats : int
        Timed runs per file, at least 1.
    warmup : int
        Untimed runs at the start of each turn.

    Returns
    -------
    dict of str to Latency
        In the order of `paths`.

    Raises
    ------
    LoadError
        When onnxruntime cannot load a file.
    InputError
        When the inputs do not fit a file.
    ConfigError
        When `paths` is empty or no mapping, or a number is not an integer in its range.

    Notes
    -----
    In its turn a file runs `warmup` times untimed and five times timed; every round starts with
    another file. The untimed runs matter: after another model has run, a small one was seen to take
    1.5 times as long at first and to need four runs to settle.
    """
    if not isinstance(paths, Mapping) or not paths:
        raise ConfigError(
            "The 'paths' argument must map at least one name to a file.", seen=repr(paths)
        )
    check_count("repeats", repeats)
    check_count("warmup", warmup, least=0)
    models = {name: OnnxModel(path, threads=threads) for name, path in paths.items()}
    feeds = {name: model.feed(inputs) for name, model in models.items()}
    names = list(models)
    times: dict[str, list[int]] = {name: [] for name in names}
    for done in range(0, repeats, _RUNS_PER_TURN):
        first = done // _RUNS_PER_TURN % len(names)
        for name in names[first:] + names[:first]:
            model, feed = models[name], feeds[name]
            for _ in range(warmup):
                model.run(feed)
            for _ in range(min(_RUNS_PER_TURN, repeats - done)):
                start = time.perf_counter_ns()
                model.run(feed)
                times[name].append(time.perf_counter_ns() - start)
    batch = batch_size(normalize_inputs(inputs))
    return {
        name: _summary(found, threads, 1 if batch is None else batch)
        for name, found in times.items()
    }


def _summary(nanoseconds: list[int], threads: int, batch: int) -> Latency:
    low, middle, high = np.percentile(np.array(nanoseconds) / 1e6, [10, 50, 90])
    return Latency(
        median_ms=float(middle),
        p10_ms=float(low),
        p90_ms=float(high),
        threads=threads,
        batch=batch,
        repeats=len(nanoseconds),
    )

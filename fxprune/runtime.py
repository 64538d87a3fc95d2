"""ONNX files in onnxruntime, on the CPU."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
from torch import Tensor

from fxprune.errors import InputError, LoadError
from fxprune.inputs import ExampleInputs, check_count, iter_leaves, normalize_inputs

__all__ = ["Array", "OnnxModel", "first_lines", "plain_name", "run_onnx"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_SHOWN_CHARACTERS = 400


class OnnxModel:
    """An ONNX file ready to run.

    Parameters
    ----------
    path : str or PathLike
        The file.
    threads : int
        Threads one operator may use.

    Attributes
    ----------
    path : str
        The file.
    input_names, output_names : tuple of str
        Names in the file's order.
    input_shapes : tuple of tuple
        One shape per input; a size that is free at run time is a name or None.

    Raises
    ------
    ConfigError
        When `threads` is not an integer of at least 1.
    LoadError
        When onnxruntime cannot load the file.
    """

    def __init__(self, path: str | os.PathLike[str], *, threads: int = 1) -> None:
        self.path = os.fspath(path)
        options = ort.SessionOptions()
        options.intra_op_num_threads = check_count("threads", threads)
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Idle threads that spin would take the cores from another model in the same process.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = ort.InferenceSession(
                self.path, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise LoadError(
                "onnxruntime cannot load the file.",
                where=self.path,
                seen=first_lines(error),
                hint="check that the file exists, is complete and needs only operators and dtypes "
                "that onnxruntime has on the CPU",
            ) from error
        inputs = self._session.get_inputs()
        self.input_names: tuple[str, ...] = tuple(i.name for i in inputs)
        self.input_shapes: tuple[tuple[int | str | None, ...], ...] = tuple(
            tuple(i.shape) for i in inputs
        )
        self.output_names: tuple[str, ...] = tuple(o.name for o in self._session.get_outputs())

    def feed(self, inputs: ExampleInputs) -> dict[str, Array]:
        """Return the inputs in the form that `run` takes.

        Parameters
        ----------
        inputs : Tensor, tuple, list or dict
            As given to the exported model: the tensors of a dict go by name, others by position.
            What is not a tensor is fixed in the file and left out.

        Returns
        -------
        dict of str to ndarray
            Arrays by input name.

        Raises
        ------
        InputError
            When names or number do not fit the file, or numpy does not know a dtype.
        """
        args, kwargs = normalize_inputs(inputs)
        leaves = [
            (plain_name(path, "input"), leaf)
            for path, leaf in iter_leaves(kwargs or args)
            if isinstance(leaf, Tensor)
        ]
        names = [name for name, _ in leaves] if kwargs else list(self.input_names)
        if len(leaves) != len(self.input_names) or set(names) != set(self.input_names):
            raise InputError(
                "The inputs do not fit the ONNX file.",
                where=self.path,
                seen=f"the file takes {list(self.input_names)}, given "
                + (f"are {names}" if kwargs else f"by position: {len(leaves)}"),
                hint="pass one tensor per input, by position or in a dict by name",
            )
        try:
            arrays = [leaf.detach().cpu().numpy() for _, leaf in leaves]
        except TypeError as error:
            raise InputError(
                "numpy does not know the dtype of an input.",
                where=self.path,
                seen=", ".join(str(leaf.dtype) for _, leaf in leaves),
                hint="use float32 (model.float()) with onnxruntime on the CPU",
            ) from error
        return dict(zip(names, arrays, strict=True))

    def run(self, feed: Mapping[str, Array]) -> list[Array]:
        """Run the model once.

        Parameters
        ----------
        feed : mapping of str to ndarray
            As returned by `feed`.

        Returns
        -------
        list of ndarray
            The outputs in the order of `output_names`.

        Raises
        ------
        InputError
            When onnxruntime refuses the inputs.
        """
        try:
            return list(self._session.run(None, feed))
        except Exception as error:
            given = ", ".join(f"{name} {a.shape} {a.dtype}" for name, a in feed.items())
            taken = dict(zip(self.input_names, self.input_shapes, strict=True))
            raise InputError(
                "onnxruntime cannot run the model on these inputs.",
                where=self.path,
                seen=f"{given}; {first_lines(error)}",
                hint=f"the file takes the shapes {taken}",
            ) from error


def run_onnx(
    path: str | os.PathLike[str], inputs: ExampleInputs, *, threads: int = 1
) -> list[Array]:
    """Run an ONNX file once.

    Parameters
    ----------
    path : str or PathLike
        The file. To run it many times, open it once as an `OnnxModel`.
    inputs : Tensor, tuple, list or dict
        As given to the exported model: the tensors of a dict go by name, others by position.
    threads : int
        Threads one operator may use.

    Returns
    -------
    list of ndarray
        The outputs in the file's order.

    Raises
    ------
    LoadError
        When onnxruntime cannot load the file.
    InputError
        When the inputs do not fit the file.
    ConfigError
        When `threads` is not an integer of at least 1.
    """
    model = OnnxModel(path, threads=threads)
    return model.run(model.feed(inputs))


def plain_name(path: str, fallback: str) -> str:
    """Turn a leaf's path into an ONNX name: ``['boxes'][0]`` becomes ``boxes_0``.

    Parameters
    ----------
    path : str
        As yielded by `iter_leaves`.
    fallback : str
        Stands in for an empty name and before one that starts with a digit.

    Returns
    -------
    str
        Letters, digits and underscores.
    """
    name = re.sub(r"\W+", "_", path).strip("_")
    return f"{fallback}_{name}".strip("_") if not name or name[0].isdigit() else name


def first_lines(error: BaseException) -> str:
    """Return the beginning of a foreign error's message, which may run to pages.

    Parameters
    ----------
    error : BaseException
        The error.

    Returns
    -------
    str
        Its type and at most 400 characters on one line.
    """
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " [...]"

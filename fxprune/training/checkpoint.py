"""Checkpoints: one file, written whole, and the one before it kept.

A new file is complete and on the disk before the old one is renamed to ``checkpoint.prev.pt`` and
the new one takes its name, so that a good file exists at every moment.
"""

from __future__ import annotations

import logging
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fxprune._files import replacing
from fxprune.errors import ConfigError, LoadError

__all__ = ["NAME", "PREVIOUS", "Checkpoints"]

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint.prev.pt"
_FORMAT = 1
_MARK = "fxprune_training"
_KEYS = frozenset({_MARK, "fingerprint", "stage"})
_log = logging.getLogger("fxprune")


class Checkpoints:
    """The checkpoints of one run.

    Parameters
    ----------
    folder : Path
    fingerprint : mapping of str to str
        What two runs must share to be one; written into every file and compared on reading.
    """

    def __init__(self, folder: Path, fingerprint: Mapping[str, str]) -> None:
        self._newest = folder / NAME
        self._previous = folder / PREVIOUS
        self._fingerprint = dict(fingerprint)

    def write(self, state: Mapping[str, Any]) -> None:
        """Write a new checkpoint.

        Parameters
        ----------
        state : mapping of str
            Plain values and tensors only, with ``stage`` among the keys.

        Raises
        ------
        ConfigError
            If the folder cannot be written; the checkpoints there are as they were.
        """
        with replacing(self._newest) as draft:
            self._write_draft({**state, _MARK: _FORMAT, "fingerprint": self._fingerprint}, draft)
            if self._newest.exists():
                self._newest.replace(self._previous)
        _flush(self._newest.parent)

    def _write_draft(self, state: Mapping[str, Any], draft: Path) -> None:
        try:
            torch.save(state, draft)
            _flush(draft)
        except (OSError, RuntimeError) as error:
            raise ConfigError(
                "The checkpoint cannot be written.",
                where=str(self._newest),
                seen=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}",
                hint="make room on the disk and go on with --resume, or resume=True",
            ) from error

    def read(self) -> dict[str, Any] | None:
        """Return the newest good checkpoint, or None where there is none at all.

        A file that is damaged or foreign is set aside under another name, with a warning, when the
        one before it is good.

        Raises
        ------
        LoadError
            If none of the files is good, or the run was started with other settings, another model
            or other data. No file is touched then.
        """
        problems: dict[Path, str] = {}
        for path in (self._newest, self._previous):
            if not path.exists():
                continue
            found = _read(path)
            if isinstance(found, str):
                problems[path] = found
                continue
            self._compare(path, found["fingerprint"])
            for bad, why in problems.items():
                _log.warning(
                    "%s is no good checkpoint (%s): kept as %s; going on from %s",
                    *(bad, why, _set_aside(bad).name, path.name),
                )
            self._remove_drafts()
            return found
        if problems:
            raise LoadError(
                "None of the run's checkpoints can be read.",
                where=", ".join(str(path) for path in problems),
                seen="; ".join(f"{path.name}: {why}" for path, why in problems.items()),
                hint="start again in another folder, or remove these files",
            )
        return None

    def _compare(self, path: Path, theirs: Mapping[str, str]) -> None:
        mine = self._fingerprint
        differing = [key for key in (*mine, *theirs) if mine.get(key) != theirs.get(key)]
        if not differing:
            return
        names = list(dict.fromkeys(differing))
        shown = [
            f"{name}: {theirs.get(name, 'nothing')} there, {mine.get(name, 'nothing')} here"
            for name in names[:3]
        ]
        more = f"; {len(names) - 3} more" if len(names) > 3 else ""
        raise LoadError(
            f"The checkpoint belongs to another run: {', '.join(names[:3])} differ"
            f"{'s' if len(names) == 1 else ''}.",
            where=str(path),
            seen="; ".join(shown) + more,
            hint="resume with the settings, model and data it was started with, or start a new "
            "run in another folder",
        )

    def _remove_drafts(self) -> None:
        """Remove what a process left that was killed while it wrote."""
        for draft in self._newest.parent.glob(f".{NAME}.*"):
            draft.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any] | str:
    """Return what a file holds, or in words why that is no checkpoint."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch itself does not look at the checksums
        if damaged is not None:
            return f"damaged: the checksum of {damaged} is wrong"
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        return f"damaged or foreign: {' '.join(str(error).split())[:200]}"
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return f"damaged: {type(error).__name__} while reading"
    if not isinstance(state, dict) or not state.keys() >= _KEYS:
        return "foreign: a file of torch, but no checkpoint of fxprune"
    if state[_MARK] != _FORMAT:
        return f"of format {state[_MARK]}; this version reads {_FORMAT}"
    return state


def _set_aside(path: Path) -> Path:
    """Rename a file to the first free name; return it."""
    number = 1
    while (aside := path.with_name(f"{path.stem}.bad-{number}.pt")).exists():
        number += 1
    return path.rename(aside)


def _flush(path: Path) -> None:
    """Have the system write a file, or a folder's names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

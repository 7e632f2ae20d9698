"""Measure on a board: models are made here, sent there over SSH, and run and timed there."""

from __future__ import annotations

from farthing.bench.remote.boards import Board, Boards
from farthing.bench.remote.machine import Remote, find_machine
from farthing.bench.remote.talk import Limits

__all__ = ["Board", "Boards", "Limits", "Remote", "find_machine"]

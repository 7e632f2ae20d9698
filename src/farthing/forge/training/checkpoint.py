"""Checkpoints: all that a training needs to go on as if it had never been stopped, in one file."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from farthing import files

FILE = "training.pt"


def save(directory: Path, key: str, content: Mapping[str, Any]) -> None:
    """Write a checkpoint whole or not at all; it takes the place of the one before.

    Args:
        directory: where; it is made.
        key: of the training, so that no other takes it for its own.
        content: tensors, numbers, text, and lists and maps of them.

    Raises:
        StorageError: the disk is full, or the place may not be written to.
    """
    buffer = io.BytesIO()
    torch.save({"key": key, **content}, buffer)
    files.write(directory / FILE, buffer.getvalue())


def load(directory: Path, key: str) -> dict[str, Any] | None:
    """What `save` wrote for this training; None if there is nothing, or nothing that can be used.

    No code is run by reading it: torch refuses all but tensors and plain data.
    """
    files.sweep(directory / FILE)
    try:
        content = torch.load(io.BytesIO((directory / FILE).read_bytes()), weights_only=True)
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ):
        return None
    if not isinstance(content, dict) or content.pop("key", None) != key:
        return None
    return content


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values."""
    parts = []
    for name, tensor in tensors.items():
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        parts.append(f"{name} {tensor.dtype} {list(tensor.shape)} {files.digest(flat.numpy().tobytes())}")
    return files.digest("\n".join(parts).encode())

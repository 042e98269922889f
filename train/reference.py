"""What a model made of some answers before it was trained on, on disk."""

import json
from pathlib import Path
from uuid import uuid4

import torch
from torch import Tensor

from vlm.errors import ConfigError, Problem
from vlm.identity import identity
from vlm.model import VLM


class Reference:
    """The log-probabilities of chosen and rejected answers by the samples' keys (see `Batch.keys`).

    Each process that adds some does so in a file of its own, a line a sample, so that nothing is lost when it is
    killed. A sample whose text or images change has another key.

    Args:
        folder: of one model's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mine = folder / f"{uuid4().hex}.jsonl"
        self._known: dict[str, tuple[float, float]] = {}
        for path in sorted(folder.glob("*.jsonl")):
            whole = path.read_text(encoding="utf8").rpartition("\n")[0]  # the last line of a killed process may be cut
            for line in whole.splitlines():
                row = json.loads(line)
                self._known[row["key"]] = (row["chosen"], row["rejected"])

    def __len__(self) -> int:
        return len(self._known)

    def __getitem__(self, keys: list[str]) -> Tensor:
        """float32 [2, P].

        Raises:
            ConfigError: a sample is not known.
        """
        missing = [key for key in keys if key not in self._known]
        if missing:
            problem = f"{len(missing)} of {len(keys)} samples are not in {self.folder}: the data has changed since the"
            raise ConfigError(Problem("data", f"{problem} stage began; put it back, or begin the run anew"))
        rows = [self._known[key] for key in keys]
        return torch.tensor(rows, dtype=torch.float32).T.contiguous()  # Lightning lowers the default for bf16-true

    def knows(self, keys: list[str]) -> bool:
        """Whether all of the samples are known."""
        return all(key in self._known for key in keys)

    def add(self, keys: list[str], found: Tensor) -> None:
        """Take down [2, P], of chosen and of rejected answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._mine.open("a", encoding="utf8") as file:
            for key, (chosen, rejected) in zip(keys, found.T.tolist(), strict=True):
                self._known[key] = (chosen, rejected)
                file.write(json.dumps({"key": key, "chosen": chosen, "rejected": rejected}) + "\n")


def folder_of(folder: Path, model: VLM) -> Path:
    """Where in `folder` that is what `model` makes of answers, in the precision that it is in now."""
    device = model.device.type
    low = str(torch.get_autocast_dtype(device)).removeprefix("torch.") if torch.is_autocast_enabled(device) else "own"
    return folder / f"{identity(model)}-{low}"

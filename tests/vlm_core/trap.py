"""A data source that does harm where a test asks for it."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from vlm.embedded import Handwriting


class Trap(Handwriting):
    """Handwriting, until `file` says `raise`, `kill` or `wait`.

    Args:
        file: what to do; nothing if it is not there.
        at: the first of ten samples at which it does so.
        options: of the handwriting.
    """

    def __init__(self, *, file: str, at: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.file, self.at = Path(file), at

    def __getitem__(self, index: int) -> Any:
        if self.at <= index < self.at + 10 and self.file.is_file():
            match self.file.read_text():
                case "raise":
                    raise RuntimeError("no room [here]")
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "wait":
                    time.sleep(600)
        return super().__getitem__(index)

"""Assemble, train, evaluate and question vision-language models from one recipe file.

`import vlm` itself loads nothing heavy: the names below are imported on first use.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HERE = Path(__file__).parent
if not (_HERE / "encoders").is_dir():  # a checkout: the wings lie beside this folder, not inside it
    __path__.append(str(_HERE.parent))

if TYPE_CHECKING:
    from vlm.assembly import assemble as assemble
    from vlm.errors import ConfigError as ConfigError
    from vlm.features import Features as Features
    from vlm.loading import load as load
    from vlm.model import VLM as VLM
    from vlm.processor import Processor as Processor
    from vlm.sample import Batch as Batch
    from vlm.sample import Sample as Sample
    from vlm.sample import Turn as Turn

_PUBLIC = {
    "assemble": "vlm.assembly",
    "load": "vlm.loading",
    "ConfigError": "vlm.errors",
    "Features": "vlm.features",
    "VLM": "vlm.model",
    "Processor": "vlm.processor",
    "Batch": "vlm.sample",
    "Sample": "vlm.sample",
    "Turn": "vlm.sample",
}
__all__ = ["VLM", "Batch", "ConfigError", "Features", "Processor", "Sample", "Turn", "assemble", "load"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'vlm' has no attribute {name!r}; public names: {', '.join(__all__)}")

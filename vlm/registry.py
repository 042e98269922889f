"""Names to parts: a registered short word, or `package.module:Class` for a part from outside."""

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Generic, TypeVar

from vlm.errors import ConfigError, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Exact names -> classes of one kind. Built-ins are lazy `"module:Name"` strings, so nothing is imported early.

    Args:
        kind: what an entry is, for messages (`encoder`).
        base: `"module:Class"` of which every entry must be a subclass.
        builtins: short word -> `"module:Class"`.
    """

    def __init__(self, kind: str, base: str, builtins: dict[str, str]) -> None:
        self.kind = kind
        self._base = base
        self._entries: dict[str, str | type[T]] = dict(builtins)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def get(self, name: str) -> type[T]:
        """The class called `name`: a registered word (exact match, never by substring) or `package.module:Class`.

        Raises:
            ConfigError: nobody knows the name (the nearest known one is given), the module cannot be imported,
                or what was found is not a part of this kind.
        """
        entry = self._entries.get(name, name)
        if isinstance(entry, str):
            if ":" not in entry:
                raise ConfigError(unknown(self.kind, name, self._entries) + ", or your own as package.module:Class")
            entry = self._check(name, locate(entry))
            if name in self._entries:
                self._entries[name] = entry
        return entry

    def _check(self, name: str, found: Any) -> type[T]:
        base = locate(self._base)
        if not (isinstance(found, type) and issubclass(found, base)):
            raise ConfigError(f"`{name}` is {found!r}, not a {self.kind}: it must be a subclass of {self._base}")
        return found


def locate(path: str) -> Any:
    """The object at `package.module:Name`, looked for in the environment and then in the working folder.

    Raises:
        ConfigError: the form is wrong, the module is not found or fails to import, or it has no such name.
    """
    module_name, _, name = path.partition(":")
    if not module_name or not name.isidentifier():
        raise ConfigError(f"`{path}` is not of the form package.module:Class")
    try:
        module = import_module(module_name) if _importable(module_name) else _import_from_folder(module_name)
    except ImportError as error:
        raise ConfigError(f"`{path}`: cannot import {module_name}: {error}") from error
    if name not in vars(module):
        public = [key for key, value in vars(module).items() if isinstance(value, type)]
        raise ConfigError(f"`{path}`: {unknown(f'name in {module_name}', name, public)}")
    return vars(module)[name]


def _importable(module_name: str) -> bool:
    return module_name in sys.modules or find_spec(module_name.partition(".")[0]) is not None


def _import_from_folder(module_name: str) -> Any:
    """A console script does not see the working folder; a user with `my_parts.py` beside the recipe expects it to."""
    sys.path.append(str(Path.cwd()))
    try:
        return import_module(module_name)
    finally:
        sys.path.pop()


# `transformers`, `timm`, `open_clip`, `lightning` are imported by these modules only where they are used.
encoders: Registry[Any] = Registry(
    "encoder",
    "vlm.encoder:Encoder",
    {
        "clip": "vlm.encoders.vit:Clip",
        "siglip": "vlm.encoders.vit:Siglip",
        "dinov2": "vlm.encoders.vit:Dinov2",
        "sam": "vlm.encoders.sam:Sam",
        "open_clip": "vlm.encoders.openclip:OpenClip",
        "timm": "vlm.encoders.timms:Timm",
        "conv_vit": "vlm.encoders.conv_vit:ConvVit",
        "tower": "vlm.encoders.tower:Tower",
        "patches": "vlm.encoders.patches:Patches",
    },
)
views: Registry[Any] = Registry(
    "view policy",
    "vlm.views:Views",
    {
        "squash": "vlm.encoders.views:Squash",
        "pad": "vlm.encoders.views:Pad",
        "crop": "vlm.encoders.views:Crop",
        "fit": "vlm.encoders.native:Fit",
        "native": "vlm.encoders.native:Native",
        "tiles": "vlm.encoders.tiles:Tiles",
        "anyres": "vlm.encoders.tiles:AnyRes",
        "canvas_tiles": "vlm.encoders.tiles:CanvasTiles",
        "covering_tiles": "vlm.encoders.tiles:CoveringTiles",
        "edge_tiles": "vlm.encoders.tiles:EdgeTiles",
        "roomy_tiles": "vlm.encoders.tiles:RoomyTiles",
        "slices": "vlm.encoders.slices:Slices",
        "overlapping_crops": "vlm.encoders.crops:OverlappingCrops",
    },
)
merges: Registry[Any] = Registry(
    "merge",
    "vlm.connector:Merge",
    {
        "channel": "vlm.connectors.merge:ChannelMerge",
        "sequence": "vlm.connectors.merge:SequenceMerge",
        "interleave": "vlm.connectors.merge:InterleaveMerge",
        "gated": "vlm.connectors.merge:GatedMerge",
    },
)
connectors: Registry[Any] = Registry(
    "connector",
    "vlm.connector:Connector",
    {
        "linear": "vlm.connectors.mlp:LinearConnector",
        "mlp": "vlm.connectors.mlp:Mlp",
        "perceiver": "vlm.connectors.perceiver:Perceiver",
        "norm": "vlm.connectors.tokenwise:Norm",
        "activation": "vlm.connectors.tokenwise:Activate",
        "layer_mix": "vlm.connectors.tokenwise:LayerMix",
        "space_to_depth": "vlm.connectors.spatial:SpaceToDepth",
        "pool": "vlm.connectors.spatial:Pool",
        "resize": "vlm.connectors.spatial:Resize",
        "positions": "vlm.connectors.spatial:Positions",
        "conv": "vlm.connectors.conv:Conv",
        "attention_pool": "vlm.connectors.attention_pool:AttentionPool",
        "abstractor": "vlm.connectors.abstractor:Abstractor",
        "resampler": "vlm.connectors.resampler:Resampler",
        "qformer": "vlm.connectors.qformer:QFormer",
        "soft_vocabulary": "vlm.connectors.vocabulary:SoftVocabulary",
        "merge_tokens": "vlm.connectors.token_merging:MergeTokens",
        "cross_attention": "vlm.connectors.cross_attention:CrossAttention",
    },
)
packers: Registry[Any] = Registry(
    "packer",
    "vlm.packer:Packer",
    {"stitch": "vlm.connectors.stitch:Stitch", "separators": "vlm.connectors.separators:Separators"},
)
sources: Registry[Any] = Registry(
    "data source",
    "vlm.data:Source",
    {
        "json": "vlm.data:JsonSource",
        "datasets": "vlm.train.sources.data_sets:Datasets",
        "tar": "vlm.train.sources.tars:Tars",
        "handwriting": "vlm.embedded:Handwriting",
        "records": "vlm.eval.sources.records:Records",
        "hub": "vlm.eval.sources.hub:Hub",
        "mme": "vlm.eval.sources.folders:Mme",
        "ai2d": "vlm.eval.sources.folders:Ai2d",
        "funsd": "vlm.eval.sources.folders:Funsd",
        "text_lines": "vlm.eval.sources.text_lines:TextLines",
        "refcoco": "vlm.eval.sources.refcoco:RefCoco",
        "words": "vlm.eval.rendered.sources:Words",
        "lines": "vlm.eval.rendered.sources:Lines",
        "receipts": "vlm.eval.rendered.sources:Receipts",
        "charts": "vlm.eval.rendered.sources:Charts",
        "tables": "vlm.eval.rendered.sources:Tables",
    },
)
objectives: Registry[Any] = Registry(
    "objective",
    "vlm.train.objectives:Objective",
    {
        "language_modelling": "vlm.train.objectives:LanguageModelling",
        "read_slots": "vlm.train.objectives:ReadSlots",
        "clip": "vlm.train.contrastive:Clip",
        "siglip": "vlm.train.contrastive:SigLip",
        "dpo": "vlm.train.preference:Dpo",
        "orpo": "vlm.train.preference:Orpo",
    },
)
optimisers: Registry[Any] = Registry(
    "optimiser",
    "vlm.train.optimisers:Optimiser",
    {
        "adamw": "vlm.train.optimisers:AdamW",
        "adamw8bit": "vlm.train.optimisers:AdamW8bit",
        "adafactor": "vlm.train.optimisers:Adafactor",
        "muon": "vlm.train.optimisers:Muon",
        "galore": "vlm.train.optimisers:GaLore",
    },
)

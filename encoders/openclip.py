"""The vision tower of any open_clip model as an encoder."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlm.errors import ConfigError, Problem, unknown
from vlm.views import ImageSpec, Size
from vlm.weights import is_planning

from .common import as_size, saved_spec, whole_patches
from .hub import final_spec
from .intermediates import Intermediates, Maps, described_spec, fixed_patch, has_prefix, unknown_model, without_head
from .sam import resampled

# What open_clip needs beside a vision tower, as small as it can be.
_NO_TEXT = {"context_length": 1, "vocab_size": 4, "width": 8, "heads": 1, "layers": 1}


class OpenClip(Intermediates):
    """The vision tower of an open_clip model (arXiv 2212.07143): its own ViT or ResNet, or a timm backbone (SigLIP).

    Default: the last block but one without norm, because only the pooled output of the last is trained (as `Clip`).
    For a SigLIP tower `layers: [-1], norm: true` is the usual choice (as `Siglip`).

    Args:
        model: open_clip's name (`ViT-L-14`), or `hf-hub:org/name`, or `local-dir:path`.
        pretrained: open_clip's tag of weights for that name (`laion2b_s32b_b82k`).
        weights: a local checkpoint file of the whole model instead.
        config: an open_clip model config instead of the one called `model`: random weights at these sizes.
        layers: blocks' or stages' outputs to yield, 1 to their number, or from the end.
        prefix: `drop` puts CLS into `Features.extra`, `keep` leaves it in front of the tokens.
        norm: the final norm on each layer.
        size: (height, width) in pixels, if not the model's own; open_clip resamples position embeddings.
        image: fields of a saved `ImageSpec`; overrides `size` and the weights' own.
    """

    def __init__(
        self,
        *,
        model: str,
        pretrained: str | None = None,
        weights: str | None = None,
        config: dict[str, Any] | None = None,
        layers: tuple[int, ...] = (-2,),
        prefix: Literal["drop", "keep"] = "drop",
        norm: bool = False,
        size: int | tuple[int, int] | None = None,
        image: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._name = model
        stored = model.startswith(("hf-hub:", "local-dir:"))
        _check_sources(stored=stored, pretrained=pretrained, weights=weights, config=config)
        self._options = _model_config(model) if config is None else deepcopy(config)
        tag = {} if pretrained is None else _tag(model, pretrained, self._options)
        vision = self._options["vision_cfg"]
        own = _own_spec(_stored_preprocess(model) if stored else tag, vision)
        self.image = final_spec(own, size, image)
        vision["image_size"] = list(self.image.size)
        checkpoint = pretrained or weights
        if config is not None or is_planning() or not (stored or checkpoint):
            self.model = _random_tower(self._options)
        else:
            self.model = _loaded_tower(model, checkpoint, self._options)
        depth, patch, self._has_prefix = _facts(self.model)
        self._setup(layers, depth, prefix, norm=norm, patch=patch)

    def _maps(self, pixels: Tensor, indices: list[int]) -> Maps:
        found = self.model.forward_intermediates(
            pixels,
            indices=indices,
            stop_early=True,
            normalize_intermediates=self.norm,
            intermediates_only=True,
            output_extra_tokens=self._has_prefix,
        )
        maps = found["image_intermediates"]
        return list(zip(maps, found.get("image_intermediates_prefix", [None] * len(maps)), strict=True))

    def _resize_backbone(self, size: Size) -> None:
        from open_clip.timm_model import TimmModel
        from open_clip.transformer import VisionTransformer

        self._options["vision_cfg"]["image_size"] = list(size)
        tower: Any = self.model
        if isinstance(tower, TimmModel):
            tower.set_input_size(size)
        elif isinstance(tower, VisionTransformer):
            grid = whole_patches(size, as_size(tower.patch_size))
            positions = resampled(tower.positional_embedding[1:].unflatten(0, tower.grid_size)[None], grid)[0]
            both = torch.cat([tower.positional_embedding[:1], positions.flatten(0, 1)]).detach()
            tower.positional_embedding = nn.Parameter(both)
            tower.image_size, tower.grid_size = size, grid

    def resolved(self) -> dict[str, Any]:
        return {
            "model": self._name,
            "config": json.loads(json.dumps(self._options)),  # tuples become lists, as they will when saved
            "layers": list(self.layers),
            "prefix": "keep" if self.prefix else "drop",
            "norm": self.norm,
            "image": saved_spec(self.image),
        }


def _check_sources(*, stored: bool, pretrained: str | None, weights: str | None, config: dict[str, Any] | None) -> None:
    given = [name for name, value in (("pretrained", pretrained), ("weights", weights), ("config", config)) if value]
    if len(given) > 1:
        raise ConfigError(Problem(given[1], f"give only one of {' and '.join(given)}"))
    if stored and given and given != ["config"]:
        raise ConfigError(Problem(given[0], "a `hf-hub:` or `local-dir:` model brings its own weights"))
    if weights is not None and not Path(weights).is_file():
        raise ConfigError(Problem("weights", f"no file `{weights}`; a folder is written as model: local-dir:path"))


def _model_config(model: str) -> dict[str, Any]:
    """The config of the model called `model`, with its own text tower left out."""
    import open_clip

    try:
        found = open_clip.get_model_config(model.replace("/", "-") if ":" not in model else model)
    except OSError as error:
        raise ConfigError(Problem("model", f"no open_clip config at `{model}`: {error}")) from error
    if found is None:
        raise unknown_model("open_clip", model, open_clip.list_models())
    kept = ("embed_dim", "vision_cfg", "quick_gelu")
    return {name: deepcopy(found[name]) for name in kept if name in found}


def _tag(model: str, pretrained: str, options: dict[str, Any]) -> dict[str, Any]:
    """open_clip's description of the weights called `pretrained`: mean, std, interpolation, activation.

    Weights trained with QuickGELU (OpenAI's) get it here; open_clip itself only warns and computes other features.
    """
    import open_clip

    name = model.replace("/", "-")
    found: dict[str, Any] = open_clip.get_pretrained_cfg(name, pretrained)
    if not found:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ConfigError(Problem("pretrained", unknown(f"tag of {model}", pretrained, tags)))
    if found.get("quick_gelu", False):
        options["quick_gelu"] = True
    return found


def _own_spec(saved: dict[str, Any], vision: dict[str, Any]) -> ImageSpec:
    """Mean, std and interpolation as the weights say, else OpenAI's; size of the model."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    cfg = merge_preprocess_dict(PreprocessCfg(), saved)
    return described_spec(cfg, as_size(vision.get("image_size", 224)))


def _stored_preprocess(model: str) -> dict[str, Any]:
    """`preprocess_cfg` of the `open_clip_config.json` beside the weights."""
    from open_clip.pretrained import download_pretrained_from_hf

    kind, _, where = model.partition(":")
    name = "open_clip_config.json"
    path = Path(where) / name if kind == "local-dir" else download_pretrained_from_hf(where, filename=name)
    stored: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8")).get("preprocess_cfg", {})
    return stored


def _random_tower(options: dict[str, Any]) -> Any:
    """The vision tower alone, with random weights; open_clip builds none without a text tower beside it."""
    import open_clip
    from open_clip.timm_model import TimmModel

    size = _size(options)
    try:
        whole = open_clip.CustomTextCLIP(
            embed_dim=options.get("embed_dim", 512),
            vision_cfg={**options["vision_cfg"], "timm_model_pretrained": False, "image_size": size},
            text_cfg=_NO_TEXT,
            quick_gelu=options.get("quick_gelu", False),
        )
    except (TypeError, AssertionError, RuntimeError, ArithmeticError) as error:  # a size of 0 is divided by
        raise ConfigError(Problem("config", f"open_clip refuses it: {error}")) from error
    if isinstance(whole.visual, TimmModel):
        whole.visual.set_input_size(size)  # its constructor leaves the backbone at timm's own size
    return _without_head(whole.visual)


def _loaded_tower(model: str, checkpoint: str | None, options: dict[str, Any]) -> Any:
    """The vision tower of the whole pretrained model; all of it is loaded, so that open_clip checks every key."""
    import open_clip

    quick = options.get("quick_gelu", False)
    size = _size(options)
    try:
        whole = open_clip.create_model(
            model, pretrained=checkpoint, force_image_size=size, force_quick_gelu=quick, require_pretrained=True
        )
    except (RuntimeError, OSError, ValueError) as error:
        raise ConfigError(Problem("weights", f"open_clip cannot load `{checkpoint or model}`: {error}")) from error
    return _without_head(whole.visual)


def _size(options: dict[str, Any]) -> int | tuple[int, int]:
    """The image size as open_clip wants it: its ResNets know squares only, by one number."""
    height, width = as_size(options["vision_cfg"]["image_size"])
    return height if height == width else (height, width)


def _without_head(tower: Any) -> Any:
    """Without the pooling and projection that only the contrastive loss uses."""
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(tower, VisionTransformer):
        tower.proj = None
        tower.attn_pool = None
        tower.attn_pool_contrastive = None
    elif isinstance(tower, TimmModel):
        tower.head = nn.Identity()
        without_head(tower.trunk)
    else:
        tower.attnpool = nn.Identity()
    return tower


def _facts(tower: Any) -> tuple[int, int | None, bool]:
    """Number of blocks or stages, pixels per token where only whole patches fit, whether it can give prefix tokens."""
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(tower, VisionTransformer):
        return len(tower.transformer.resblocks), tower.patch_size[0], True
    if isinstance(tower, TimmModel):
        return len(tower.trunk.feature_info), fixed_patch(tower.trunk), has_prefix(tower.trunk)
    return 5, None, False  # open_clip's ResNet: the stem and four stages

"""Any image model of timm as an encoder."""

import json
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from vlm.errors import ConfigError, Problem
from vlm.views import ImageSpec, Size
from vlm.weights import is_planning

from .anatomy import channels_last
from .common import as_size, saved_spec
from .hub import final_spec
from .intermediates import (
    Intermediates,
    Maps,
    described_spec,
    fixed_patch,
    has_prefix,
    split_pairs,
    unknown_model,
    without_head,
)


class Timm(Intermediates):
    """A timm model (ViT, ConvNeXt, ResNet, Swin, SAM, ...) read through its `forward_intermediates`.

    Default: the last block's output with the final norm, which is what timm's `forward_features` gives for most. In
    a pyramid layer i is the output of stage i - 1 of `feature_info`, each with its own width and grid.

    Args:
        model: timm's name, with or without a tag (`vit_so400m_patch14_siglip_384.webli`).
        pretrained: timm's own weights for that name.
        weights: a local safetensors file, a local folder, or a hub id, instead; folder and hub bring their config.
        config: further arguments of timm's model, e.g. `{depth: 2, embed_dim: 32}`.
        layers: blocks' or stages' outputs to yield, 1 to their number, or from the end.
        prefix: `drop` puts CLS and registers into `Features.extra`, `keep` leaves them in front of the tokens.
        norm: the final norm, on the layers to which timm applies it (ViTs: each; pyramids: the last; SAM: its neck).
            Families to which it applies none (Hiera) need `norm: false`.
        final: what the model itself yields (timm's `forward_features`) in place of its last layer: of a pyramid that
            goes on behind its last stage, like FastViT with its `final_conv`, which FastVLM (arXiv 2412.13303) feeds.
        size: (height, width) in pixels, if not the weights' own; timm resamples position embeddings and windows.
        image: fields of a saved `ImageSpec`; overrides `size` and the weights' own.
    """

    def __init__(
        self,
        *,
        model: str,
        pretrained: bool = False,
        weights: str | None = None,
        config: dict[str, Any] | None = None,
        layers: tuple[int, ...] = (-1,),
        prefix: Literal["drop", "keep"] = "drop",
        norm: bool = True,
        final: bool = False,
        size: int | tuple[int, int] | None = None,
        image: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self._name = model
        self._final = final
        if final and layers != (-1,):
            raise ConfigError(Problem("layers", f"{list(layers)} beside `final: true`, which has one only: [-1]"))
        self._options = dict(config or {})
        source = self._source(pretrained, weights)
        cfg = _pretrained_cfg(source)
        own = _own_spec(cfg, self._options.get("img_size"))
        self.image = final_spec(own, size, image)
        if cfg.get("fixed_input_size") or "img_size" in self._options:  # the others are convolutions, of any size
            self._options["img_size"] = list(self.image.size)
        self.model: Any = _create(source, self._options, final=final)
        self._setup(layers, len(self.model.feature_info), prefix, norm=norm, patch=fixed_patch(self.model))

    def _maps(self, pixels: Tensor, indices: list[int]) -> Maps:
        if self._final:
            return [(self._last_map(pixels), None)]
        door = self.model.forward_intermediates
        extra = {"return_prefix_tokens": True} if has_prefix(self.model) else {}
        found = door(pixels, indices=indices, norm=self.norm, stop_early=True, intermediates_only=True, **extra)
        return split_pairs(found)

    def _resize_backbone(self, size: Size) -> None:
        if "img_size" not in self._options or list(size) == self._options["img_size"]:
            return
        change = getattr(self.model, "set_input_size", None)  # most of timm's families of a fixed size have it
        if change is None:
            raise ConfigError(Problem("size", f"timm's `{self._name}` cannot change its size once it is built"))
        try:
            change(img_size=size)
        except AssertionError as error:  # of a size that its patches do not fill
            raise ConfigError(Problem("size", f"timm's `{self._name}` refuses {size}: {error}")) from error
        self._options["img_size"] = list(size)

    def _last_map(self, pixels: Tensor) -> Tensor:
        """[N, C, H, W]: all that the model does but its pooling and classifier."""
        found: Tensor = self.model.forward_features(pixels)
        if found.ndim != 4:
            raise ConfigError(Problem("final", f"`{self._name}` yields tokens, no map: `layers: [-1]` are they"))
        if channels_last([tuple(found.shape)], (pixels.shape[-2], pixels.shape[-1])):
            found = found.permute(0, 3, 1, 2)
        return found

    def resolved(self) -> dict[str, Any]:
        return {
            "model": self._name,
            "config": json.loads(json.dumps(self._options)),  # tuples become lists, as they will when saved
            "layers": list(self.layers),
            "prefix": "keep" if self.prefix else "drop",
            "norm": self.norm,
            "final": self._final,
            "image": saved_spec(self.image),
        }

    def _source(self, pretrained: bool, weights: str | None) -> dict[str, Any]:
        """Arguments of `timm.create_model` that say which model and which weights.

        Raises:
            ConfigError: timm has no such model or tag, or the folder holds another model.
        """
        import timm
        from timm.models import get_arch_name, is_model_pretrained, split_model_name_tag

        name, tag = split_model_name_tag(self._name)
        if not timm.is_model(name):
            raise unknown_model("timm", name, timm.list_models())
        if tag and not is_model_pretrained(self._name):
            raise unknown_model("timm", self._name, timm.list_models(f"{name}.*", pretrained=True))
        if weights is None:
            return {"model_name": self._name, "pretrained": pretrained and not is_planning()}
        if pretrained:
            raise ConfigError(Problem("weights", "give `weights` or `pretrained: true`, not both"))
        if Path(weights).is_file():
            overlay = {"file": weights} | {key: self._options[key] for key in self._options if key == "num_classes"}
            return {"model_name": self._name, "pretrained": not is_planning(), "pretrained_cfg_overlay": overlay}
        prefix = "local-dir" if Path(weights).is_dir() else "hf-hub"
        cfg, found, saved = _folder(prefix, weights)
        if get_arch_name(found) != name:
            raise ConfigError(Problem("model", f"`{weights}` holds a `{found}`, not a `{name}`"))
        self._options = {**(saved or {}), **self._options}
        return {"model_name": f"{prefix}:{weights}", "pretrained": not is_planning(), "cfg": cfg}


def _folder(prefix: str, weights: str) -> tuple[dict[str, Any], str, dict[str, Any] | None]:
    """(pretrained_cfg, model's name, model's arguments) of a timm folder or hub repository."""
    from timm.models import load_model_config_from_hf
    from timm.models._hub import load_model_config_from_path  # timm exports only its twin

    load = load_model_config_from_path if prefix == "local-dir" else load_model_config_from_hf
    try:
        found: tuple[dict[str, Any], str, dict[str, Any] | None] = load(weights)
    except (OSError, ValueError) as error:
        raise ConfigError(Problem("weights", f"no timm model at `{weights}`: {error}")) from error
    return found


def _pretrained_cfg(source: dict[str, Any]) -> dict[str, Any]:
    """timm's description of the weights: mean, std, size."""
    import timm

    if "cfg" in source:
        cfg: dict[str, Any] = source["cfg"]
        return cfg
    known: Any = timm.get_pretrained_cfg(source["model_name"])
    return dict(known.to_dict()) if known is not None else {}


def _own_spec(cfg: dict[str, Any], img_size: Any) -> ImageSpec:
    """The weights' training size, mean, std and interpolation; timm's crop is left to the views."""
    from timm.data.config import resolve_data_config

    data: dict[str, Any] = resolve_data_config(pretrained_cfg=cfg or {"input_size": (3, 224, 224)}, use_test_size=False)
    return described_spec(data, as_size(data["input_size"][1:] if img_size is None else img_size))


def _create(source: dict[str, Any], options: dict[str, Any], *, final: bool) -> Any:
    """The model without its classifier and pooling head, and without what else is behind its last stage unless `final`.

    The head is taken off after loading: a model created without one makes timm load without checking (`strict` off),
    and parameters that the file lacks would stay random.
    """
    import timm

    arguments = {key: value for key, value in source.items() if key != "cfg"}
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    try:
        model: Any = timm.create_model(**arguments, **options)
    except (TypeError, ValueError, AssertionError, ArithmeticError) as error:  # a size of 0 is divided by
        raise ConfigError(Problem("config", f"timm refuses {options}: {error}")) from error
    except RuntimeError as error:
        if not source["pretrained"]:
            raise
        raise ConfigError(Problem("weights", f"they do not fit the model: {error}")) from error
    if final:
        model.reset_classifier(0, "")
        return model
    return without_head(model)

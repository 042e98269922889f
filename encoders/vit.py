"""The usual vision transformers by short names: CLIP, SigLIP, DINOv2."""

from typing import Any, Literal

from .tower import Tower


class Clip(Tower):
    """CLIP's vision tower (arXiv 2103.00020), with the options of `Tower`.

    Defaults as in LLaVA-1.5 (arXiv 2310.03744): the last layer but one, because CLIP trains only CLS at the last, so
    its patch tokens there serve CLS alone; CLS dropped; no norm, since CLIP's `post_layernorm` was only ever trained
    on CLS.
    """

    model_types = ("clip_vision_model",)

    def __init__(
        self,
        *,
        weights: str | None = None,
        config: dict[str, Any] | None = None,
        layers: tuple[int, ...] = (-2,),
        prefix: Literal["drop", "keep"] = "drop",
        norm: bool = False,
        head: bool = True,
        size: int | tuple[int, int] | None = None,
        image: dict[str, Any] | None = None,
    ) -> None:
        options: dict[str, Any] = {"prefix": prefix, "norm": norm, "head": head, "size": size, "image": image}
        super().__init__(weights=weights, config=config, layers=layers, **options)


class Siglip(Tower):
    """SigLIP's vision tower (arXiv 2303.15343), without its pooling head unless told so, with the options of `Tower`.

    Default: the last layer with the final norm, `last_hidden_state`: what PaliGemma (arXiv 2407.07726), Gemma 3 and
    DeepSeek-VL (arXiv 2403.05525) feed. LLaVA-OneVision (arXiv 2408.03326) takes the last layer with `norm: false`.
    It has no prefix tokens.
    """

    model_types = ("siglip_vision_model",)

    def __init__(
        self,
        *,
        weights: str | None = None,
        config: dict[str, Any] | None = None,
        layers: tuple[int, ...] = (-1,),
        prefix: Literal["drop", "keep"] = "drop",
        norm: bool = True,
        head: bool = False,
        size: int | tuple[int, int] | None = None,
        image: dict[str, Any] | None = None,
    ) -> None:
        options: dict[str, Any] = {"prefix": prefix, "norm": norm, "head": head, "size": size, "image": image}
        super().__init__(weights=weights, config=config, layers=layers, **options)


class Dinov2(Tower):
    """DINOv2 (arXiv 2304.07193), also with registers (arXiv 2309.16588), with the options of `Tower`.

    Default: patch tokens of the last layer with the final norm, as the paper reads them for dense tasks. Prismatic
    (arXiv 2402.07865) takes `layers: [-2], norm: false`.
    """

    model_types = ("dinov2", "dinov2_with_registers")

    def __init__(
        self,
        *,
        weights: str | None = None,
        config: dict[str, Any] | None = None,
        layers: tuple[int, ...] = (-1,),
        prefix: Literal["drop", "keep"] = "drop",
        norm: bool = True,
        head: bool = True,
        size: int | tuple[int, int] | None = None,
        image: dict[str, Any] | None = None,
    ) -> None:
        options: dict[str, Any] = {"prefix": prefix, "norm": norm, "head": head, "size": size, "image": image}
        super().__init__(weights=weights, config=config, layers=layers, **options)

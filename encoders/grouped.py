"""Patches in groups that a merger behind the ViT takes together, one sequence for all images (Qwen-VL)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vlm.views import Size

from .anatomy import Anatomy, plain_anatomy


def grouped_patches(config: Any, pixels: Tensor) -> dict[str, Any]:
    """pixels [N, 3, H, W] -> all patches of all images, group by group, and each image's grid.

    A patch is [3, time, h, w] flattened; an image is a film of equal frames.
    """
    side, merge = config.patch_size, config.spatial_merge_size
    rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
    parts = pixels.unflatten(3, (columns // merge, merge, side))  # type: ignore[no-untyped-call]
    parts = parts.unflatten(2, (rows // merge, merge, side))  # [N, 3, R, m, h, C, m, w]
    parts = parts.permute(0, 2, 5, 3, 6, 1, 4, 7).flatten(0, 4)  # [N * T, 3, h, w]
    frames = parts.unsqueeze(2).expand(-1, -1, config.temporal_patch_size, -1, -1)
    grids = torch.tensor([[1, rows, columns]] * len(pixels), device=pixels.device)
    return {"hidden_states": frames.flatten(1), "grid_thw": grids}


def ungrouped(config: Any, tokens: Tensor, size: Size) -> Tensor:
    """Tokens [N, T, C] in order of their groups -> in raster order."""
    merge = config.spatial_merge_size
    rows, columns = _cells(config, size)
    cells = tokens.unflatten(1, (rows, columns, merge, merge))  # type: ignore[no-untyped-call]
    flat: Tensor = cells.transpose(2, 3).flatten(1, 4)
    return flat


def unwindowed(config: Any, tokens: Tensor, size: Size) -> Tensor:
    """Tokens in order of the windows that attend together, and of groups in each -> in raster order."""
    rows, columns = _cells(config, size)
    side = config.window_size // config.spatial_merge_size // config.patch_size
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    order = sorted(range(len(cells)), key=lambda cell: (cells[cell][0] // side, cells[cell][1] // side, cell))
    places = torch.tensor(order, device=tokens.device).argsort()
    groups = tokens.unflatten(1, (rows * columns, -1))  # type: ignore[no-untyped-call]
    return ungrouped(config, groups[:, places].flatten(1, 2), size)


def merging(config: Any, size: Size) -> Anatomy:
    """Parts of a ViT of this kind: what it gives has gone through its merger, which is a connector in the kit."""
    return _merging(config, size, [])


def deepstack(config: Any, size: Size) -> Anatomy:
    """The same with further mergers of layers in between (arXiv 2406.04334)."""
    return _merging(config, size, [f"deepstack_merger_list.{n}" for n in range(len(config.deepstack_visual_indexes))])


def _merging(config: Any, size: Size, further: Sequence[str]) -> Anatomy:
    tokens = (size[0] // config.patch_size) * (size[1] // config.patch_size)
    width = vars(config).get("embed_dim", config.hidden_size)  # where there are both, the other is the LLM's
    return plain_anatomy(tokens, width, config.depth, blocks="blocks", heads=["merger", *further])


def _cells(config: Any, size: Size) -> tuple[int, int]:
    """Rows and columns of groups."""
    step = config.patch_size * config.spatial_merge_size
    return size[0] // step, size[1] // step

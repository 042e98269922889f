"""A batch with the shapes of real ones and no pixels."""

from collections.abc import Sequence

import torch

from vlm.collate import Example, Look
from vlm.model import VLM
from vlm.packer import ImagePlan
from vlm.planning.shadow import META
from vlm.sample import Batch, Turn


def shadow_batch(model: VLM, images: Sequence[ImagePlan], *, text: int, size: int = 1) -> Batch:
    """`size` equal samples with the given images and one answer of `text` tokens, all of them supervised.

    The chat template's and the layout's own tokens come on top. Pixels are on the meta device, numbers are real.
    """
    one = _example(model, images, text)
    return model.processor.collate([one] * size)


def _example(model: VLM, images: Sequence[ImagePlan], text: int) -> Example:
    processor = model.processor
    shown = [processor.render(image, number) for number, image in enumerate(images)]
    frame = processor.chat.encode([Turn("user", ""), Turn("assistant", "")], shown)
    answer = torch.zeros(text, dtype=torch.long)
    last = torch.full_like(answer, len(images) - 1)
    return Example(
        torch.cat([frame.input_ids, answer]),
        torch.cat([frame.labels, answer]),
        torch.cat([frame.owner, torch.full_like(answer, -1)]),
        torch.cat([frame.seen, last]),
        [Look(image, _pixels(image)) for image in images],
    )


def _pixels(image: ImagePlan) -> list[list[torch.Tensor]]:
    return [[torch.empty(3, *view.size, device=META) for view in views] for views in zip(*image.views, strict=True)]

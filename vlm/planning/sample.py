"""Which sample a plan is made for: the images' tokens, and as much text as there is room for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlm.errors import ConfigError, Problem
from vlm.model import VLM
from vlm.packer import ImagePlan
from vlm.planning.shadow_batch import shadow_batch
from vlm.sample import Batch
from vlm.views import Size

TEXT = 256
"""Text tokens of a sample, unless asked otherwise."""


@dataclass(frozen=True)
class ImageCount:
    """What one image comes to."""

    size: Size
    """(height, width) in pixels."""
    views: int
    tokens: int
    positions: int
    """Placeholders in the LLM's sequence."""


def count_images(model: VLM, sizes: Mapping[str, Size], *, images: int) -> tuple[dict[str, ImageCount], dict[str, str]]:
    """Counts by name, and by name why the model's view policy refuses an image.

    Args:
        model: whose processor counts.
        sizes: (height, width) in pixels by name.
        images: of a sample; some policies show an image among others in fewer views.
    """
    counts: dict[str, ImageCount] = {}
    refused: dict[str, str] = {}
    known: dict[Size, ImageCount] = {}
    for name, size in sizes.items():
        try:
            known[size] = known[size] if size in known else _count(model, size, images)
            counts[name] = known[size]
        except ConfigError as error:
            refused[name] = str(error)
    return counts, refused


def _count(model: VLM, size: Size, images: int) -> ImageCount:
    plan = model.processor.plan(*size, images=images)
    return ImageCount(
        size,
        plan.count,
        model.processor.tokens(*size, images=images),
        model.processor.positions(*size, images=images),
    )


@dataclass(frozen=True)
class PlanSample:
    """A sample of equal images and one answer."""

    image: str
    """Name of the image; empty for text alone."""
    images: int
    size: Size
    """(height, width) in pixels."""
    tokens: int
    """Visual tokens."""
    text: int
    """Tokens of the answer, all of them supervised."""
    length: int
    """Positions in the LLM, those of the chat template and of the layout included."""

    def plans(self, model: VLM) -> list[ImagePlan]:
        """How its images are shown."""
        return _plans(model, self.size, self.images)

    def batch(self, model: VLM, size: int = 1) -> Batch:
        """So many of it, without pixels."""
        return shadow_batch(model, self.plans(model), text=self.text, size=size)


def choose_samples(
    model: VLM, counts: Mapping[str, ImageCount], *, images: int, text: int | None
) -> tuple[PlanSample | None, PlanSample | None]:
    """The sample with the middle image, and the one with the largest that leaves room in the LLM's context; None
    where none does.

    Args:
        model: the model.
        counts: the images to choose from.
        images: of a sample; 0 is text alone.
        text: tokens of the answer; `TEXT`, or as many as there is room for, if absent.

    Raises:
        ConfigError: so much text does not fit even without an image.
    """
    alone = _sample(model, "", None, images=0, text=text)
    if alone is None and text is not None:
        room = model.processor.max_length - _length(model, [])
        raise ConfigError(Problem("text", f"`{text}`; the LLM's context leaves room for {room} tokens"))
    if not images:
        return alone, alone
    names = sorted(counts, key=lambda name: (counts[name].tokens, counts[name].positions))
    middle = (len(names) - 1) // 2
    for last in reversed(range(len(names))):
        largest = _sample(model, names[last], counts[names[last]], images=images, text=text)
        if largest is not None:
            name = names[min(middle, last)]
            return _sample(model, name, counts[name], images=images, text=text) or largest, largest
    return None, None


def _sample(model: VLM, name: str, image: ImageCount | None, *, images: int, text: int | None) -> PlanSample | None:
    size = (0, 0) if image is None else image.size
    frame = _length(model, _plans(model, size, images))
    room = model.processor.max_length - frame
    wanted = min(TEXT, room) if text is None else text
    if not 0 < wanted <= room:
        return None
    tokens = 0 if image is None else image.tokens
    return PlanSample(name, images, size, tokens=images * tokens, text=wanted, length=frame + wanted)


def _plans(model: VLM, size: Size, images: int) -> list[ImagePlan]:
    """How so many images of one size are shown."""
    return [model.processor.plan(*size, images=images)] * images if images else []


def _length(model: VLM, images: Sequence[ImagePlan]) -> int:
    """Positions without the answer's text."""
    return shadow_batch(model, images, text=0).input_ids.shape[1]

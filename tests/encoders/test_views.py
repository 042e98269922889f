"""View policies: geometry by hand, and pixels against an obvious PIL rendering."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from vlm.encoders.views import Crop, Pad, Squash
from vlm.views import ImageSpec, View

SPEC = ImageSpec((40, 40), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
MEAN = (102, 128, 153)  # round(255 * mean); 127.5 rounds to even


def picture(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height * 1000 + width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def normalised(image: Image.Image) -> np.ndarray:
    array = np.asarray(image, dtype=np.float64) / 255
    return ((array - SPEC.mean) / SPEC.std).transpose(2, 0, 1)


@pytest.mark.parametrize(
    ("policy", "image", "size", "resize", "offset"),
    [
        (Squash(), (10, 300), (40, 60), (40, 60), (0, 0)),
        (Pad(), (100, 50), (40, 40), (40, 20), (0, 10)),
        (Pad(), (50, 100), (40, 40), (20, 40), (10, 0)),
        (Pad(centre=False), (50, 100), (40, 40), (20, 40), (0, 0)),
        (Pad(), (10, 10), (40, 60), (40, 40), (0, 10)),  # a small image grows
        (Pad(), (40, 60), (40, 60), (40, 60), (0, 0)),
        (Pad(), (1, 5000), (40, 40), (1, 40), (19, 0)),  # 40 / 5000 of a pixel high
        (Pad(), (5000, 1), (40, 40), (40, 1), (0, 19)),
        (Pad(), (1, 1), (40, 60), (40, 40), (0, 10)),
        (Crop(), (50, 100), (40, 40), (40, 80), (0, -20)),
        (Crop(), (100, 50), (40, 40), (80, 40), (-20, 0)),
        (Crop(), (30, 41), (40, 40), (40, 54), (0, -7)),  # 54.67 rounded down, as torchvision does
        (Crop(), (40, 43), (40, 40), (40, 43), (0, -1)),  # an odd rest: one pixel less at the left
        (Crop(), (41, 30), (40, 40), (54, 40), (-7, 0)),
        (Crop(), (43, 40), (40, 40), (43, 40), (-1, 0)),
        (Crop(), (1, 3), (40, 40), (40, 120), (0, -40)),
        (Crop(), (20, 20), (40, 60), (60, 60), (-10, 0)),
    ],
)
def test_geometry(policy, image, size, resize, offset):
    assert policy.plan(image, size) == [View(resize, size, offset)]


@pytest.mark.parametrize("policy", [Squash(), Pad(), Pad(centre=False), Crop()])
@pytest.mark.parametrize("image", [(1, 1), (1, 7), (9, 1), (3, 997), (1000, 2), (39, 41), (40, 40)])
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (16, 48), (48, 16)])
def test_every_plan_is_sound(policy, image, size):
    (view,) = policy.plan(image, size)
    top, left, bottom, right = view.valid
    assert view.size == size
    assert min(view.resize) >= 1
    assert 0 <= top < bottom <= size[0]
    assert 0 <= left < right <= size[1]
    if isinstance(policy, Pad):  # nothing is lost, and one side is full
        assert (bottom - top, right - left) == view.resize
        assert bottom - top == size[0] or right - left == size[1]
    else:  # no padding
        assert view.valid == (0, 0, *size)


@pytest.mark.parametrize("shape", [(30, 50), (64, 16), (1, 9), (9, 1), (40, 40)])
class TestPixels:
    def test_squash(self, shape):
        image = picture(*shape)
        (view,) = Squash().plan(shape, SPEC.size)
        expected = image.resize((40, 40), Image.Resampling.BICUBIC)
        np.testing.assert_allclose(view.render(image, SPEC).numpy(), normalised(expected), atol=1e-5)

    @pytest.mark.parametrize("fill", [None, (255, 0, 7)])
    def test_pad_is_pil_pad(self, shape, fill):
        image = picture(*shape)
        (view,) = Pad(fill=fill).plan(shape, SPEC.size)
        expected = Image.new("RGB", (40, 40), fill or MEAN)
        resized = image.resize(view.resize[::-1], Image.Resampling.BICUBIC)
        expected.paste(resized, (view.offset[1], view.offset[0]))
        np.testing.assert_allclose(view.render(image, SPEC).numpy(), normalised(expected), atol=1e-5)
        # Pillow's own letterboxing chooses the same size, up to its rounding of exact halves
        inside = ImageOps.contain(image, (40, 40)).size[::-1]
        assert max(abs(a - b) for a, b in zip(view.resize, inside, strict=True)) <= 1

    def test_crop_is_torchvision_resize_and_centre_crop(self, shape):
        transforms = pytest.importorskip("torchvision.transforms.functional")
        image = picture(*shape)
        (view,) = Crop().plan(shape, SPEC.size)
        resized = transforms.resize(image, [40], transforms.InterpolationMode.BICUBIC)
        assert resized.size == view.resize[::-1]
        box = (-view.offset[1], -view.offset[0], 40 - view.offset[1], 40 - view.offset[0])
        np.testing.assert_allclose(view.render(image, SPEC).numpy(), normalised(resized.crop(box)), atol=1e-5)


def test_padding_with_the_mean_is_zero():
    (view,) = Pad().plan((10, 40), SPEC.size)
    pixels = view.render(picture(10, 40), SPEC)
    assert pixels[:, :15].abs().max() < 0.01  # the mean, rounded to a whole colour
    assert pixels[:, 15:25].abs().max() > 1

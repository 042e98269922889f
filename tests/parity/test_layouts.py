"""Layouts of published models: the ids that the kit makes of a text with images are those of the model's processor."""

from typing import Any

import pytest
import torch
import transformers
import yaml

from tests.conftest import picture
from vlm.chat import ChatFormat
from vlm.connectors.stitch import Stitch
from vlm.features import Shape
from vlm.layout import Layout, Piece
from vlm.packer import ImagePlan, Run
from vlm.sample import IMAGE_MARK, Turn
from vlm.tokenizers import bytes_tokenizer
from vlm.views import View

TEXT = f"a {IMAGE_MARK} b\n{IMAGE_MARK}{IMAGE_MARK} c"
SIZES = [(64, 40), (10, 12), (33, 80)]  # (width, height) of the three pictures
Grid = tuple[int, int]


def layout(text: str) -> Layout:
    """As a recipe has it."""
    found = Layout.model_validate(yaml.safe_load(text))
    found.check()
    return found


def tokenizer(*tokens: str, **named: str) -> Any:
    """The byte-level tokenizer with further special tokens, some of them under a name."""
    made = bytes_tokenizer()
    made.add_special_tokens({"extra_special_tokens": [*tokens, *named.values()]}, replace_extra_special_tokens=False)
    for name, token in named.items():
        setattr(made, name, token)
        setattr(made, name + "_id", made.convert_tokens_to_ids(token))
    made.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    return made


def whole(tokens: int, grid: Grid | None = None) -> Run:
    return Run(Shape(tokens, 1, grid), "whole")


def tiles(grid: Grid, tokens: int) -> list[Run]:
    return [Run(Shape(tokens, 1), "tile", (row, column)) for row in range(grid[0]) for column in range(grid[1])]


def ids(made: Any, own: Layout, images: list[list[Run]], token: str, text: str = TEXT) -> list[int]:
    """The kit's ids of the text, with the model's token in the places of the kit's own."""
    pieces: list[tuple[Piece, ...]] = [
        own.render(number, (height, width), runs)
        for number, (runs, (width, height)) in enumerate(zip(images, SIZES, strict=False))
    ]
    form = ChatFormat(made, joint=own.joint)
    found = form.encode([Turn("user", text)], pieces).input_ids
    return torch.where(found == form.placeholder_id, made.convert_tokens_to_ids(token), found).tolist()


def wanted(processor: Any, mark: str, text: str = TEXT, nested: bool = False) -> list[int]:
    pictures = [picture(number, size) for number, size in enumerate(SIZES[: text.count(IMAGE_MARK)])]
    images = [pictures] if nested else pictures
    found = processor(
        images=images, text=[text.replace(IMAGE_MARK, mark)], return_tensors="pt", add_special_tokens=False
    )
    return found["input_ids"][0].tolist()  # type: ignore[no-any-return]


IDEFICS2 = """
image: "{views}<fake_token_around_image>"
thumbnail: "<fake_token_around_image>{tokens}"
tile: "<fake_token_around_image>{tokens}"
joint: "<fake_token_around_image>"
"""


@pytest.mark.parametrize("split", [True, False])
def test_idefics2(split: bool) -> None:
    """Two images side by side share the fake token between them."""
    made = tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>")
    size = {"shortest_edge": 8, "longest_edge": 16}
    images = transformers.Idefics2ImageProcessor(size=size, do_image_splitting=split)
    processor = transformers.Idefics2Processor(images, made, image_seq_len=2)
    runs = [*(tiles((2, 2), 2) if split else []), whole(2)]
    found = ids(made, layout(IDEFICS2), [runs] * 3, "<image>")
    assert found == wanted(processor, "<image>", nested=True)
    assert made.decode(found).count("<fake_token_around_image>") == (6 + 6 + 5 if split else 2 + 2 + 1)


IDEFICS3 = """
image: "{tiles}\\n\\n{thumbnail}"
single: "{views}"
thumbnail: "<fake_token_around_image><global-img>{tokens}<fake_token_around_image>"
tile: "<fake_token_around_image><row_{row}_col_{column}>{tokens}"
row: "\\n"
"""


def test_idefics3() -> None:
    tags = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    made = tokenizer("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *tags)
    images = transformers.Idefics3ImageProcessor(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 16}, resample=2
    )
    processor = transformers.Idefics3Processor(images, made, image_seq_len=2)
    runs = [[*tiles((3, 4), 2), whole(2)], [*tiles((4, 4), 2), whole(2)], [*tiles((4, 2), 2), whole(2)]]
    assert ids(made, layout(IDEFICS3), runs, "<image>") == wanted(processor, "<image>", nested=True)


@pytest.mark.parametrize("grid", [None, (1, 2), (3, 4)])
def test_smolvlm(grid: Grid | None) -> None:
    """Its processor wants a package to write numbers in words with; its texts come from two functions."""
    from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

    runs = [*(tiles(grid, 3) if grid else []), whole(3)]
    rendered = "".join(p if isinstance(p, str) else "#" * p for p in layout(IDEFICS3).render(0, (1, 1), runs))
    tags = {"fake_token_around_image": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    assert rendered == get_image_prompt_string(*(grid or (0, 0)), 3, image_token="#", **tags)


def got_ocr2() -> Any:
    return transformers.GotOcr2ImageProcessor(size={"height": 16, "width": 16}, crop_to_patches=True, max_patches=6)


CROPPED = [(2, 3), None, (3, 1)]  # tiles of the three pictures, by closest aspect


def cropped(tokens: int) -> list[list[Run]]:
    return [[*(tiles(grid, tokens) if grid else []), whole(tokens)] for grid in CROPPED]


def test_internvl() -> None:
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    made = tokenizer(**names, video_token="<video>")
    video = transformers.InternVLVideoProcessor()
    processor = transformers.InternVLProcessor(got_ocr2(), made, video, image_seq_length=2)
    found = ids(made, layout('image: "<img>{views}</img>"'), cropped(2), "<IMG_CONTEXT>")
    assert found == wanted(processor, "<IMG_CONTEXT>")


AYA = """
image: "<|START_OF_IMG|>{views}<|END_OF_IMG|>"
thumbnail: "TILE_GLOBAL{tokens}"
tile: "TILE_{index}{tokens}"
"""


def test_aya_vision() -> None:
    made = tokenizer("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE", "TILE_GLOBAL")
    processor = transformers.AyaVisionProcessor(got_ocr2(), made, patch_size=4, img_size=16, downsample_factor=2)
    assert ids(made, layout(AYA), cropped(4), "<|IMG_PATCH|>") == wanted(processor, "<image>")


COHERE2 = """
image: "<|START_OF_IMG|>{views}<|END_OF_IMG|>"
thumbnail: "{tokens}<|IMG_LINE_BREAK|>"
tile: "{tokens}<|IMG_LINE_BREAK|>"
"""


def test_cohere2_vision() -> None:
    names = {"image_token": "<|IMG_PATCH|>", "boi_token": "<|START_OF_IMG|>", "eoi_token": "<|END_OF_IMG|>"}
    made = tokenizer(**names, img_line_break_token="<|IMG_LINE_BREAK|>")
    images = transformers.Cohere2VisionImageProcessor(size={"height": 16, "width": 16}, max_patches=6)
    processor = transformers.Cohere2VisionProcessor(images, made, patch_size=8, img_size=16)
    count = [int(number) for number in images([picture(0, size) for size in SIZES])["num_patches"]]
    assert len(set(count)) > 1
    runs = [
        [
            *(tiles((1, number - 1), int(processor.patch_size) ** 2) if number > 1 else []),
            whole(int(processor.patch_size) ** 2),
        ]
        for number in count
    ]
    assert ids(made, layout(COHERE2), runs, "<|IMG_PATCH|>") == wanted(processor, "<|IMG_PATCH|>")


@pytest.mark.parametrize("merge", [1, 2], ids=["pixtral", "mistral3"])
def test_pixtral_and_mistral3(merge: int) -> None:
    made = tokenizer("[IMG]", "[IMG_BREAK]", "[IMG_END]")
    side = 8 * merge
    images = transformers.PixtralImageProcessor(size={"longest_edge": 64}, patch_size={"height": side, "width": side})
    processor = transformers.PixtralProcessor(images, made, patch_size=8, spatial_merge_size=merge)
    grids = {1: [(5, 8), (2, 2), (8, 4)], 2: [(3, 4), (1, 1), (4, 2)]}[merge]
    runs = [[whole(rows * columns, (rows, columns))] for rows, columns in grids]
    found = ids(made, layout('{image: "{views}[IMG_END]", line: "[IMG_BREAK]"}'), runs, "[IMG]")
    assert found == wanted(processor, "[IMG]")


LLAMA4 = """
image: "<|image_start|>{tiles}<|tile_y_separator|><|image|>{thumbnail}<|image_end|>"
single: "<|image_start|><|image|>{views}<|image_end|>"
column: "<|tile_x_separator|>"
row: "<|tile_y_separator|>"
"""


def test_llama4() -> None:
    separators = ["<|tile_x_separator|>", "<|tile_y_separator|>"]
    made = tokenizer("<|image|>", "<|image_start|>", "<|image_end|>", "<|patch|>", *separators)
    images = transformers.Llama4ImageProcessor(
        size={"height": 16, "width": 16}, max_patches=6, resize_to_max_canvas=False
    )
    processor = transformers.Llama4Processor(images, made, patch_size=4)
    runs = [[*tiles((2, 3), 4), whole(4)], [whole(4)], [*tiles((3, 2), 4), whole(4)]]
    assert ids(made, layout(LLAMA4), runs, "<|patch|>") == wanted(processor, "<|image|>")


GEMMA3 = """
image: "Here is the original image {thumbnail} and here are some crops to help you see better {tiles}"
single: "{views}"
thumbnail: "\\n\\n<start_of_image>{tokens}<end_of_image>\\n\\n"
tile: "\\n\\n<start_of_image>{tokens}<end_of_image>\\n\\n"
column: " "
row: " "
"""


@pytest.mark.parametrize("crops", [True, False])
def test_gemma3(crops: bool) -> None:
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    made = tokenizer(**names)
    images = transformers.Gemma3ImageProcessor(
        size={"height": 16, "width": 16},
        do_pan_and_scan=crops,
        pan_and_scan_min_crop_size=8,
        pan_and_scan_max_num_crops=4,
        pan_and_scan_min_ratio_to_activate=1.2,
    )

    processor = transformers.Gemma3Processor(images, made, image_seq_length=2)
    text = TEXT.replace(IMAGE_MARK, "<start_of_image>")
    pictures = [picture(number, size) for number, size in enumerate(SIZES)]
    given = {"do_pan_and_scan": crops, "pan_and_scan_min_crop_size": 8}
    found = processor(images=[pictures], text=[text], images_kwargs=given)["input_ids"][0]
    split = [(1, 2), None, (2, 1)] if crops else [None] * 3
    runs = [[whole(2), *(tiles(grid, 2) if grid else [])] for grid in split]
    assert ids(made, layout(GEMMA3), runs, "<image_soft_token>") == list(found)


def test_deepseek_vl() -> None:
    made = tokenizer(image_token="<image_placeholder>")
    images = transformers.DeepseekVLImageProcessor(size={"height": 16, "width": 16})
    processor = transformers.DeepseekVLProcessor(images, made, num_image_tokens=3)
    found = ids(made, Layout(), [[whole(3)]] * 3, "<image_placeholder>")
    assert found == wanted(processor, "<image_placeholder>")


def test_janus() -> None:
    names = {"image_token": "<image_placeholder>", "boi_token": "<begin_of_image>", "eoi_token": "<end_of_image>"}
    made = tokenizer(**names)
    images = transformers.JanusImageProcessor(size={"height": 16, "width": 16})
    processor = transformers.JanusProcessor(images, made, num_image_tokens=3)
    own = layout('image: "<begin_of_image>{views}<end_of_image>"')
    assert ids(made, own, [[whole(3)]] * 3, "<image_placeholder>") == wanted(processor, "<image_placeholder>")


CLIP = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
SELECT: dict[str, Any] = {"vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}


def test_llava() -> None:
    made = tokenizer(image_token="<image>")
    processor = transformers.LlavaProcessor(transformers.CLIPImageProcessor(**CLIP), made, patch_size=4, **SELECT)
    assert ids(made, Layout(), [[whole(16)]] * 3, "<image>") == wanted(processor, "<image>")


def test_llava_next() -> None:
    """Its tokens come from a packer; the text has nothing but them."""
    made = tokenizer(image_token="<image>")
    images = transformers.LlavaNextImageProcessor(**CLIP, image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]])
    processor = transformers.LlavaNextProcessor(images, made, patch_size=4, **SELECT)

    def runs(size: Grid, resize: Grid, best: Grid) -> list[Run]:
        top, left = (best[0] - resize[0]) // 2, (best[1] - resize[1]) // 2
        cells = [(row, column) for row in range(best[0] // 16) for column in range(best[1] // 16)]
        cut = [View(resize, (16, 16), (top - 16 * cell[0], left - 16 * cell[1]), cell) for cell in cells]
        views = (View((16, 16), (16, 16)), *cut)
        return Stitch(1).runs([Shape(16, 1, (4, 4))] * len(views), ImagePlan(size, (views,)))

    packed = [
        runs((40, 64), (20, 32), (32, 32)),
        runs((12, 10), (16, 14), (16, 32)),
        runs((80, 33), (32, 14), (32, 16)),
    ]
    assert ids(made, Layout(), packed, "<image>") == wanted(processor, "<image>")


def test_fuyu() -> None:
    """Its processor strips a leading mark that this tokenizer has not: only what it makes of an image is compared."""
    if not hasattr(transformers.FuyuProcessor, "replace_image_token"):
        pytest.skip("this version of transformers does not write the image's text apart")
    made = tokenizer("|SPEAKER|", "|NEWLINE|", "<s>", "<0x04>")
    processor = transformers.FuyuProcessor(transformers.FuyuImageProcessor(), made)
    text = processor.replace_image_token({}, 0, num_patches=24, row_width=8)
    own = layout('{image: "{views}|NEWLINE|<s>", line: "|NEWLINE|"}')
    found = ids(made, own, [[whole(24, (3, 8))]], "|SPEAKER|", IMAGE_MARK)
    assert found == made(text, add_special_tokens=False)["input_ids"]


MINICPM_2_6 = """
image: "<image_id>{number}</image_id>{thumbnail}{tiles}"
single: "<image_id>{number}</image_id>{views}"
thumbnail: "<image>{tokens}</image>"
tile: "<slice>{tokens}</slice>"
row: "\\n"
"""
MOLMO = """
image: "{thumbnail}{tiles}"
thumbnail: "<im_start>{tokens}<im_col><im_end>"
stitched: "<im_start>{tokens}<im_col><im_end>"
line: "<im_col>"
"""


def test_minicpm_v_as_in_transformers() -> None:
    """4.6 has the text of 2.6."""
    if not hasattr(transformers, "MiniCPMV4_6Processor"):
        pytest.skip("this version of transformers has no MiniCPM-V")
    names = {
        **{"image_token": "<unk>", "video_token": "<video>"},
        **{"image_start_token": "<image>", "image_end_token": "</image>"},
        **{"slice_start_token": "<slice>", "slice_end_token": "</slice>"},
        **{"image_id_start_token": "<image_id>", "image_id_end_token": "</image_id>"},
    }
    made = tokenizer(**names)
    images = transformers.MiniCPMV4_6ImageProcessor(scale_resolution=64, patch_size=8, max_slice_nums=4)
    videos = transformers.MiniCPMV4_6VideoProcessor()
    processor = transformers.MiniCPMV4_6Processor(images, videos, made)
    text = f"a {IMAGE_MARK} b {IMAGE_MARK}"
    pictures = [picture(0, (150, 90)), picture(1, (20, 30))]
    processed = images(pictures, return_tensors="pt")
    counts = (processed["target_sizes"].prod(-1) // 16).tolist()
    (rows, columns), _ = (tuple(int(side) for side in grid) for grid in processed["grids"])
    assert rows * columns > 1
    first = [whole(counts[0]), *tiles((rows, columns), counts[1])]
    found = ids(made, layout(MINICPM_2_6), [first, [whole(counts[-1])]], "<unk>", text)
    reference = processor(images=pictures, text=[text.replace(IMAGE_MARK, "<unk>")], return_tensors="pt")
    assert found == reference["input_ids"][0].tolist()


def test_molmo2() -> None:
    """The thumbnail's tag apart, Molmo's layout; rows of the stitched map from the packer."""
    if not hasattr(transformers, "Molmo2Processor"):
        pytest.skip("this version of transformers has no Molmo2")
    special = ["<im_patch>", "<im_col>", "<im_start>", "<low_res_im_start>", "<frame_start>", "<im_end>", "<frame_end>"]
    made = tokenizer(*special, "<im_low>", "<|video|>", image_token="<|image|>")
    images = transformers.Molmo2ImageProcessor(
        size={"height": 56, "width": 56}, patch_size=14, overlap_margins=[1, 1], pooling_size=[1, 1]
    )
    processor = transformers.Molmo2Processor(images, transformers.Molmo2VideoProcessor(), made)
    text = f"a {IMAGE_MARK} b"
    found = processor(images=[picture(0, (64, 120))], text=[text.replace(IMAGE_MARK, "<|image|>")])["input_ids"][0]
    rows, columns = images(picture(0, (64, 120)))["image_grids"][0][2:].tolist()
    runs = [whole(16, (4, 4)), Run(Shape(rows * columns, 1, (rows, columns)), "tiles")]
    own = layout(MOLMO.replace('thumbnail: "<im_start>', 'thumbnail: "<low_res_im_start>'))
    assert [made.bos_token_id, *ids(made, own, [runs], "<im_patch>", text)] == list(found)

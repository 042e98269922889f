"""The table of metrics: what a task's YAML may name, and how each is added up.

The functions behind it are pure and stand in modules by topic; every one names the scorer that it follows, slips
included: a score is only worth something beside published ones.
"""

from inspect import getdoc, isfunction

from vlm.errors import ConfigError, unknown
from vlm.registry import locate

from .boxes import box_fault, box_scores, find_box, iou, parse_box, rec_accuracy, rec_iou
from .captions import cider, cider_scores
from .choices import (
    choice_fault,
    choice_scores,
    circular_scores,
    letter_fault,
    letter_parse,
    mcq_parse,
    mcq_parse_mmmu,
    mmmu_fault,
    mmmu_scores,
    scienceqa,
    scienceqa_parse,
)
from .documents import document_fault, entity_f1, entity_scores, kie_f1, kie_scores, nted_accuracy, nted_scores
from .ptb import ptb_tokens
from .reading import (
    anls,
    cer,
    char_recall,
    char_scores,
    character_errors,
    ocrbench,
    ocrbench_scores,
    one_minus_ned,
    wer,
    word_accuracy,
    word_errors,
)
from .scoring import Figure, Metric, blank_fault, each, errors
from .short_answers import (
    count_fault,
    exact_match,
    gqa,
    loose_match,
    mmmu_open,
    ocrbench_v2_choice,
    ocrbench_v2_counting,
    ocrbench_v2_vqa,
    relaxed_accuracy,
)
from .vqa import evalai_normalise, people_fault, textvqa_accuracy, vizwiz_accuracy, vqa_accuracy, vqa_normalise
from .yes_no import mme_parse, mme_score, mme_scores, pope, pope_parse, pope_scores, yes_no_fault

__all__ = [
    "METRICS",
    "anls",
    "cer",
    "char_recall",
    "cider",
    "descriptions",
    "entity_f1",
    "evalai_normalise",
    "exact_match",
    "gqa",
    "iou",
    "kie_f1",
    "loose_match",
    "mcq_parse",
    "mcq_parse_mmmu",
    "metric_named",
    "mme_parse",
    "mme_score",
    "mmmu_open",
    "nted_accuracy",
    "ocrbench",
    "ocrbench_v2_choice",
    "ocrbench_v2_counting",
    "ocrbench_v2_vqa",
    "one_minus_ned",
    "parse_box",
    "pope",
    "pope_parse",
    "ptb_tokens",
    "rec_accuracy",
    "rec_iou",
    "relaxed_accuracy",
    "scienceqa",
    "textvqa_accuracy",
    "vizwiz_accuracy",
    "vqa_accuracy",
    "vqa_normalise",
    "wer",
    "word_accuracy",
]

_ERRORS = (Figure("score", better="lower"),)
_POPE = (
    Figure("f1"),
    Figure("accuracy"),
    Figure("precision"),
    Figure("recall"),
    Figure("yes_ratio", better="neither"),
)
_MME = tuple(Figure(name, scale=1.0, unit="") for name in ("perception", "cognition", "total"))

METRICS: dict[str, Metric] = {
    "exact_match": Metric(each(exact_match), "equal but for case and outer spaces (OCR-VQA)"),
    "loose_match": Metric(each(loose_match), "equal but for case, spaces and one final period"),
    "contains": Metric(each(ocrbench), "a reference stands in the answer", fault=blank_fault),
    "vqa_accuracy": Metric(
        each(vqa_accuracy), "agreement with the other nine people (VQAv2, OK-VQA)", fault=people_fault
    ),
    "vqa_accuracy_2021": Metric(
        each(vqa_accuracy, strict_official=True), "as the official VQAv2 script since 2021", fault=people_fault
    ),
    "textvqa_accuracy": Metric(
        each(textvqa_accuracy), "VQA accuracy after EvalAI's processor (TextVQA)", fault=people_fault
    ),
    "vizwiz_accuracy": Metric(
        each(vizwiz_accuracy), "VQA accuracy as the VizWiz challenge's script", fault=people_fault
    ),
    "gqa": Metric(each(gqa), "equal but for case and final periods (GQA)"),
    "relaxed_accuracy": Metric(each(relaxed_accuracy, strip=True), "numbers within 5 %, text equal (ChartQA)"),
    "anls": Metric(each(anls), "edit similarity, 0 below 0.5 (DocVQA, InfographicVQA, ST-VQA)"),
    "ocrbench": Metric(
        ocrbench_scores,
        "a reference stands in the answer, rows of formulas by their own rule (OCRBench)",
        (Figure("score", scale=1000.0, unit="/ 1000"),),
        fault=blank_fault,
    ),
    "ocrbench_v2_vqa": Metric(
        each(ocrbench_v2_vqa), "contains a short reference, is near a long one (OCRBench v2)", fault=blank_fault
    ),
    "ocrbench_v2_vqa_cn": Metric(each(ocrbench_v2_vqa, chinese=True), "the same for Chinese", fault=blank_fault),
    "ocrbench_v2_vqa_case": Metric(
        each(ocrbench_v2_vqa, case_sensitive=True), "the same where capitals matter", fault=blank_fault
    ),
    "ocrbench_v2_choice": Metric(each(ocrbench_v2_choice), "the letters of the answer are the option (OCRBench v2)"),
    "ocrbench_v2_counting": Metric(each(ocrbench_v2_counting), "how near a count is (OCRBench v2)", fault=count_fault),
    "ocrbench_v2_counting_exact": Metric(
        each(ocrbench_v2_counting, exact=True), "the count stands in the answer", fault=blank_fault
    ),
    "multiple_choice": Metric(
        choice_scores(mcq_parse), "the right letter, never guessed (AI2D, SEED, MMBench)", fault=choice_fault
    ),
    "circular_choice": Metric(
        circular_scores,
        "the right letter in every rotation of the options (MMBench)",
        (Figure("score"), Figure("single")),
        fault=choice_fault,
    ),
    "option_letter": Metric(
        choice_scores(letter_parse), "the right letter of options A to D in the question (MMStar)", fault=letter_fault
    ),
    "scienceqa": Metric(
        choice_scores(scienceqa_parse), "the right letter by LLaVA's rule (ScienceQA)", fault=choice_fault
    ),
    "mmmu": Metric(mmmu_scores(mcq_parse), "the right letter, or MMMU's rule for open questions", fault=mmmu_fault),
    "mmmu_official": Metric(
        mmmu_scores(mcq_parse_mmmu), "the same with MMMU's own parser, without its guesses", fault=mmmu_fault
    ),
    "pope": Metric(
        pope_scores,
        "yes/no, each figure the mean of the splits' (POPE)",
        _POPE,
        "mean of categories",
        fault=yes_no_fault,
    ),
    "pope_pooled": Metric(pope_scores, "yes/no over all questions (POPE)", _POPE, fault=yes_no_fault),
    "mme": Metric(
        mme_scores, "yes/no twice an image, 200 points a category (MME)", _MME, "sum of categories", fault=yes_no_fault
    ),
    "cer": Metric(errors(character_errors), "character errors / reference characters", _ERRORS),
    "wer": Metric(errors(word_errors), "word errors / reference words", _ERRORS),
    "word_accuracy": Metric(each(word_accuracy), "equal in letters and digits (text recognition)"),
    "one_minus_ned": Metric(each(one_minus_ned), "1 - edit distance / longer length (text recognition)"),
    "char_recall": Metric(
        char_scores, "characters read / reference characters", (Figure("recall"), Figure("precision"))
    ),
    "cider": Metric(cider_scores, "CIDEr-D of captions (COCO, NoCaps)", (Figure("score", unit=""),)),
    "rec": Metric(
        box_scores(parse_box), "IoU >= 0.5 of a bare box (RefCOCO)", (Figure("score"), Figure("iou")), fault=box_fault
    ),
    "rec_anywhere": Metric(
        box_scores(find_box),
        "the same of the first box in the answer",
        (Figure("score"), Figure("iou")),
        fault=box_fault,
    ),
    "kie_f1": Metric(kie_scores, "F1 of fields in JSON (CORD, SROIE)", fault=document_fault),
    "nted": Metric(nted_scores, "1 - tree edit distance of JSON, by that of nothing (CORD)", fault=document_fault),
    "entity_f1": Metric(entity_scores, "F1 of entities in tags, as seqeval (FUNSD)"),
}
"""Name -> metric, as a task's YAML and `vlm list metrics` name it."""


def metric_named(name: str) -> Metric:
    """A metric of `METRICS`, or of your own as `package.module:NAME`: a `Metric`, or a function of an answer and a list
    of references that gives 0 to 1, whose mean is then the figure.

    Raises:
        ConfigError: nobody knows the name, or it is something else.
    """
    if name in METRICS:
        return METRICS[name]
    if ":" not in name:
        raise ConfigError(unknown("metric", name, METRICS) + ", or your own as package.module:NAME")
    found = locate(name)
    if isinstance(found, Metric):
        return found
    if not isfunction(found):
        raise ConfigError(f"`{name}` is {found!r}; allowed: a vlm.eval.metrics.scoring.Metric, or a function")
    return Metric(each(found), (getdoc(found) or name).partition("\n")[0])


def descriptions() -> dict[str, str]:
    """Name -> what it measures."""
    return {name: metric.summary for name, metric in METRICS.items()}

"""Tokenizers: the embedded byte-level one, and chat templates for tokenizers that bring none."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm.errors import ConfigError, Problem, choices, join
from vlm.sample import PLACEHOLDER
from vlm.weights import is_planning

PAD, START, END, USER, ASSISTANT = "<|pad|>", "<|start|>", "<|end|>", "<|user|>", "<|assistant|>"

CHAT_TEMPLATES = {
    # One token a speaker: for the embedded tokenizer, whose other tokens are single bytes.
    "short": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}<|assistant|>"
        "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
        "{% else %}<|user|>{{ message['content'] }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    # Any tokenizer without a template of its own.
    "plain": (
        "{{ bos_token or '' }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}Assistant: "
        "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ message['role'] | capitalize }}: {{ message['content'] }}{{ '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}Assistant: {% endif %}"
    ),
    # LLaVA-1.5 (arXiv 2310.03744) on Vicuna.
    "vicuna": (
        "{{ bos_token or '' }}{% for message in messages %}"
        "{% if message['role'] == 'assistant' %}ASSISTANT: "
        "{% generation %}{{ message['content'] }}{{ eos_token }}{% endgeneration %}"
        "{% elif message['role'] == 'user' %}USER: {{ message['content'] }} "
        "{% else %}{{ message['content'] }} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
    ),
}


def bytes_tokenizer() -> Any:
    """A byte-level tokenizer with no merges: 256 bytes and six special tokens, nothing downloaded, any text legal."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [PAD, START, END, USER, ASSISTANT, PLACEHOLDER]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT, PLACEHOLDER],
        chat_template=CHAT_TEMPLATES["short"],
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(name: str, chat_template: str | None = None, tokens: Sequence[str] = ()) -> Any:
    """The tokenizer `name` (`bytes`, a hub id or a folder) with a chat template, `PLACEHOLDER` and a padding token.

    Args:
        name: where it is.
        chat_template: a name of `CHAT_TEMPLATES` or the path of a Jinja file; the tokenizer's own if absent, and
            `plain` if it has none.
        tokens: special tokens that it gets where it lacks them.

    Raises:
        ConfigError: there is no such tokenizer or template, it is a slow one (without character offsets), or a token is
            empty, stands twice, or is the placeholder itself.
    """
    _check_tokens(tokens)
    tokenizer = bytes_tokenizer() if name == "bytes" else _pretrained(name)
    if chat_template is not None:
        tokenizer.chat_template = _template(chat_template)
    elif tokenizer.chat_template is None:
        tokenizer.chat_template = CHAT_TEMPLATES["plain"]
    lacking = [token for token in (*tokens, PLACEHOLDER) if token not in tokenizer.get_vocab()]
    if lacking:  # the placeholder comes last: it needs no row in the embedding
        tokenizer.add_special_tokens({"extra_special_tokens": lacking}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _check_tokens(tokens: Sequence[str]) -> None:
    problems = []
    for number, token in enumerate(tokens):
        if token in tokens[:number]:
            problems.append(Problem(join("tokens", number), f"`{token}` stands twice"))
        if not token.strip() or token == PLACEHOLDER:
            problems.append(Problem(join("tokens", number), f"`{token}` cannot be a token of a recipe"))
    if problems:
        raise ConfigError(problems)


def question_tokenizer(name: str) -> Any:
    """A tokenizer for ops that read the question beside the LLM; a stand-in while planning, which needs no download.

    Raises:
        ConfigError: there is no such tokenizer.
    """
    return bytes_tokenizer() if name == "bytes" or is_planning() else _pretrained(name)


def _pretrained(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        problem = f"no tokenizer at `{name}`; allowed: bytes, a hub id or a folder with tokenizer.json"
        raise ConfigError(Problem("tokenizer", problem)) from error
    if not tokenizer.is_fast:
        raise ConfigError(Problem("tokenizer", f"`{name}` has no tokenizer.json, so it gives no character offsets"))
    return tokenizer


def _template(name: str) -> str:
    if name in CHAT_TEMPLATES:
        return CHAT_TEMPLATES[name]
    path = Path(name)
    if not path.is_file():
        allowed = choices(name, list(CHAT_TEMPLATES))
        raise ConfigError(Problem("chat_template", f"`{name}` is neither a file nor a template;{allowed}"))
    return path.read_text(encoding="utf8")

"""Tokenizers of eight chat families, trained here on a few sentences: the library's parts and special tokens of each
family, and a short chat template of our own in the family's format, with `generation` marks around what is learned."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vlm.sample import PLACEHOLDER

CORPUS = [
    "The sign says: no entry, please turn left at the next crossing.",
    "What is the number on the red bus?  It is 42, and the one behind is 137.",
    "  Two spaces, a tab\tand a\nnew line.\n\nUSER ASSISTANT user assistant system model [INST] [/INST]",
    "Grüße aus Köln, naïve café, Ελληνικά, 日本語の看板, русский текст 🙂 👩‍👩‍👧",
] * 4
_WORDS = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_MESSAGES = "{% for message in messages %}"
_SPOKEN = "{% generation %}{{ message['content'] }}"


@dataclass(frozen=True)
class Family:
    """How one family's tokenizer is made."""

    build: Callable[[list[str]], Tokenizer]
    special: tuple[str, ...]
    eos: str
    template: str
    bos: str | None = None
    system: bool = True
    """Whether the template takes a system turn."""
    trims: bool = False
    """Whether it strips what is said."""
    rstrip: bool = False
    """Whether the special tokens swallow the white space behind them."""


def _byte_level(special: list[str], normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    split = pre_tokenizers.Split(Regex(_WORDS), behavior="isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=500, special_tokens=special, initial_alphabet=alphabet))


def _pieces(special: list[str], *, prefix: bool) -> Tokenizer:
    """SentencePiece's BPE as transformers converts it: spaces are `▁`, unknown characters fall back to bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    spaces: list[Any] = [normalizers.Prepend("▁")] * prefix + [normalizers.Replace(" ", "▁")]
    tokenizer.normalizer = normalizers.Sequence(spaces)
    strip = [decoders.Strip(" ", 1, 0)] * prefix
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    fallback = [f"<0x{number:02X}>" for number in range(256)]
    return _trained(tokenizer, trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", *special, *fallback]))


def _unigram(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return _trained(
        tokenizer, trainers.UnigramTrainer(vocab_size=300, special_tokens=["<unk>", *special], unk_token="<unk>")
    )


def _trained(tokenizer: Tokenizer, trainer: Any) -> Tokenizer:
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


FAMILIES = {
    "qwen2": Family(
        build=lambda special: _byte_level(special, normalizers.NFC()),
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
        template=_MESSAGES + "{% if loop.first and message['role'] != 'system' %}"
        "<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['role'] == 'assistant' %}" + _SPOKEN + "<|im_end|>{% endgeneration %}{{ '\n' }}"
        "{% else %}{{ message['content'] }}<|im_end|>{{ '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    ),
    "llama3": Family(
        build=_byte_level,
        special=("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        bos="<|begin_of_text|>",
        eos="<|end_of_text|>",
        trims=True,
        template="{{ bos_token }}" + _MESSAGES + "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] | trim }}<|eot_id|>{% endgeneration %}"
        "{% else %}{{ message['content'] | trim }}<|eot_id|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
    ),
    "gemma": Family(
        build=lambda special: _pieces(special, prefix=False),
        special=("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        eos="<eos>",
        system=False,
        trims=True,
        template="{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('no system role') }}{% endif %}" + _MESSAGES + "{% if message['role'] == 'assistant' %}"
        "<start_of_turn>model\n{% generation %}{{ message['content'] | trim }}<end_of_turn>{% endgeneration %}"
        "{% else %}<start_of_turn>user\n{{ message['content'] | trim }}<end_of_turn>{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    ),
    "mistral": Family(
        build=lambda special: _pieces(special, prefix=True),
        special=("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        system=False,
        template="{{ bos_token }}" + _MESSAGES + "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('user and assistant take turns') }}{% endif %}{% if message['role'] == 'user' %}"
        "[INST] {{ message['content'] }} [/INST]{% else %}"
        "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}",
    ),
    "phi3": Family(
        build=lambda special: _pieces(special, prefix=True),
        special=("<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|user|>", "<|end|>"),
        bos="<s>",
        eos="<|endoftext|>",
        rstrip=True,
        template=_MESSAGES + "{% if message['role'] == 'assistant' %}<|assistant|>\n" + _SPOKEN + "<|end|>"
        "{% endgeneration %}{% else %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>{% endif %}{{ '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
    ),
    "zephyr": Family(
        build=lambda special: _pieces(special, prefix=True),
        special=("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        template=_MESSAGES
        + "<|{{ message['role'] }}|>\n{% if message['role'] == 'assistant' %}"
        + _SPOKEN
        + "{{ eos_token }}{% endgeneration %}{% else %}{{ message['content'] + eos_token }}{% endif %}{{ '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    ),
    "vicuna": Family(
        build=_unigram,
        special=("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        template="{{ bos_token }}"
        + _MESSAGES
        + "{% if message['role'] == 'assistant' %}ASSISTANT: "
        + _SPOKEN
        + "{{ eos_token }}{% endgeneration %}{% elif message['role'] == 'user' %}USER: {{ message['content'] }} "
        "{% else %}{{ message['content'] }} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT: {% endif %}",
    ),
    "llama2": Family(
        build=lambda special: _pieces(special, prefix=True),
        special=("<s>", "</s>"),
        bos="<s>",
        eos="</s>",
        template="{% set system = '' %}{% if messages[0]['role'] == 'system' %}"
        "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}"
        "{% endif %}" + _MESSAGES + "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
        "{% if loop.first %}{{ system }}{% endif %}{{ message['content'] + ' [/INST]' }}{% else %}"
        "{% generation %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}",
    ),
}


def family_tokenizer(name: str) -> Any:
    """The tokenizer of a family, with `PLACEHOLDER` as one token, as the kit's own loading leaves it."""
    family = FAMILIES[name]
    tokenizer = family.build(list(family.special))
    special = {token: AddedToken(token, rstrip=family.rstrip, normalized=False) for token in family.special}
    tokenizer.add_special_tokens(list(special.values()))
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.bos and special[family.bos],
        eos_token=special[family.eos],
        pad_token=special[family.special[0]],
        chat_template=family.template,
        clean_up_tokenization_spaces=False,
    )
    more = [special[token] for token in special if token not in wrapped.all_special_tokens]
    wrapped.add_special_tokens({"extra_special_tokens": [*more, PLACEHOLDER]}, replace_extra_special_tokens=False)
    return wrapped

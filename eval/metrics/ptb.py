"""Penn Treebank tokens of a caption without Java: what CIDEr counts n-grams of."""

import re

# Numerals that Python takes for letters; what lies outside the basic plane (emoji) is not read at all.
_NUMERALS = "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u209c\u2150-\u218b\u2460-\u24ff\u2776-\u2793\u3007\u3021-\u3029"
_LETTER = rf"(?:[^\W\d_{_NUMERALS}\U00010000-\U0010ffff]|[\u0300-\u036f\u0591-\u05c7\u064b-\u065e\u0900-\u0e4e])"
_ALNUM = rf"(?:{_LETTER}|\d)"
_APOS = "['\u0092\u2019]"
_QUOTE = "['\u0092\u2019`\u0091\u2018\u201b]"
_END = "(?![A-Za-z])"

_WORD = rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)*"
_NUMBER = r"(?:\d*(?:[.:,]\d+)+|\d+)"
_ELIDED = rf"(?:[dDoOlL]{_QUOTE}(?={_ALNUM}))?"
_HYPHENATED = rf"{_ELIDED}{_ALNUM}+(?:[-_\u058a\u2010\u2011]{_ELIDED}{_ALNUM}+)*"
_INITIALS = r"[A-Za-z](?:\.[A-Za-z])+"
_SLASHED = r"[A-Za-z0-9]{1,99}(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}"
_DOTTED_COMPOUND = rf"[A-Za-z0-9][A-Za-z0-9.,]{{0,99}}(?:-(?:{_INITIALS}\.|[A-Za-z0-9]+))+"
_FILE = (
    r"(?:[^\W_]{1,99}\.){1,20}(?i:bat|bmp|bz2|c|class|cgi|cpp|dll|docx?|exe|gif|gz|h|html?|jar|java|jpe?g|mov|mp3|pdf"
    r"|php|pl|png|pptx?|ps|py|sql|tar|txt|wav|x|xml|zip|wm[va])(?=[\s.?!,]|$)"
)
_ADDRESS = r"[A-Za-z0-9][^\s\"<>|(){}]{0,99}@(?:[^\s\"<>|(){}.]+\.)*[^\s\"<>|(){}.]+>?"
_URL = r"(?i:https?)://[^\s\"<>|(){}]{1,2000}[^\s\"<>|.!?(){},-]"
_SITE = (
    r"(?:(?i:www)\.(?:[^\s\"<>|.!?(){},]{1,99}\.){1,9}[a-zA-Z]{2,4}"
    r"|(?:[^\s\"`'<>|!(){},-_$]{1,99}\.){1,9}(?i:com|net|org|edu))(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?"
)
_TAG = (
    r"</?[A-Za-z][\w:.-]{0,99}(?:\s+[A-Za-z][\w:.-]{0,99}(?:\s*=\s*(?:\"[^\"]{0,2000}\"|'[^']{0,2000}'))?){0,20}\s*/?>"
    r"|<[!?][A-Za-z-][^>]{0,2000}>"
)

_ABBREVIATIONS = """
jan feb mar apr jun jul aug sept? oct nov dec mon tues? wed thu(?:rs)? fri
ala ariz calif colo conn ct dak fla ga ind kans? ky md mich minn mo mont neb nev okla penn tenn va vt wisc? wyo
inc cos? corp pp?t[ye]s? ltd plc rt bancorp dept bhd assn univ intl sys tel est ext sq
jr sr bros (?:ed|ph)\\.d blvd rd esq etc al seq
mr mrs ms drs? profs? sens? reps? attys? lt col gen messrs govs? adm rev maj sgt cpl pvt capt ste? ave pres lieut hon
brig co?mdr pfc spc supts? det mt ft adj adv asst assoc ens insp mlle mme msgr sfc invt elec natl m[ft]g
vs alex wm jos cie a\\.k\\.a cf treas ph
"""
# Without their capital these are words.
_CAPITALISED = "A(?i:z|rk) D(?i:el) I(?i:ll) L(?i:a) M(?i:ass|iss) O(?i:re) P(?i:a) T(?i:ex) W(?i:ash)"
_BEFORE_NUMBER = "ca figs? prop nos? art bldg pp? op"
# Before these an initial ends its sentence ("plan B. The ..."), and its period is a token of its own.
_STARTS = """
about according additionally after an a as at but earlier her? here however if in it last many more mr\\. ms\\. now once
one other our she since so some such that the their then there these they this we what when while yet you
"""


def _any(words: str) -> str:
    return "(?:" + "|".join(words.split()) + ")"


def _rules(*patterns: str) -> tuple[re.Pattern[str], ...]:
    return tuple(map(re.compile, patterns))


# Group 1 is the token; the longest match wins, counting what must follow the token; of equals the first.
_FROM_LETTER = _rules(
    r"((?i:can(?=not)|(?:gon|wan)(?=na)|got(?=ta)|(?:lem|gim)(?=me)))(?i:not|na|ta|me)",
    rf"({_WORD}){_APOS}(?:[msdMSD]|(?i:re|ve|ll))",
    rf"([A-Za-z]*[A-MO-Za-mo-z])[nN]{_QUOTE}[tT]",
    rf"({_WORD})",
    rf"([nN]{_QUOTE}[tT]){_END}",
    rf"([A-HJ-XZn]{_QUOTE}{_LETTER}{{2,}})",
    rf"([lLdDjJ]'|(?i:dunkin|somethin|ol){_APOS}|(?i:c{_QUOTE}mon|cap{_APOS}n|c{_APOS}est)|{_LETTER}+[aeiouyAEIOUY]"
    rf"{_QUOTE}[aeiouA-Z]{_LETTER}*|(?i:cont'd\.|nor'easter|e'er|s'mores|ev'ry|li'l|nat'l))",
    rf"([yY]{_APOS}){_LETTER}",
    rf"({_URL})",
    rf"({_SITE})",
    rf"({_ADDRESS})",
    rf"({_FILE})",
    rf"({_SLASHED})",
    rf"({_HYPHENATED})",
    r"([A-Z]+(?:(?:[+&]|&amp;)[A-Z]+)+)",
    r"((?i:s&p-500|s&ls|pro-|anti-)|[A-Z]*\$|[Cc]\+\+|[CcFf]#)",
    rf"({_DOTTED_COMPOUND})",
    rf"((?:(?i:{_any(_ABBREVIATIONS)})|{_any(_CAPITALISED)})\.)",
    rf"({_INITIALS}\.?|(?i:(?:canada|sino|korean|eu|japan|non)-u\.s|u\.s\.-u\.k|u\.s\.-u\.s\.s\.r)\.?)",
    rf"([A-Za-z]\.)(?!\s+(?:(?=[A-Z])(?i:{_any(_STARTS)})(?:\s|$)|{_TAG}))",
    rf"((?i:{_any(_BEFORE_NUMBER)})\.)[ \u00a0]?\d",
    rf"((?:{_WORD}|{_HYPHENATED})\.)[,;:\u3001]",
)
_FROM_DIGIT = _rules(
    rf"({_NUMBER})",
    r"((?:\d{1,4}[- \u00a0])?\d{1,4}(?:\\?/|\u2044)\d{1,4})",
    rf"({_SLASHED})",
    rf"({_HYPHENATED})",
    rf"({_HYPHENATED}\.)[,;:\u3001]",
    r"((?:\d{2,4}[- \u00a0])?\d{2,4}[- \u00a0]\d{3,4}[- \u00a0]?\d{3,5})",
    rf"({_DOTTED_COMPOUND})",
    rf"({_SITE})",
    rf"({_ADDRESS})",
    rf"({_FILE})",
)
_FROM_MARK = _rules(
    rf"([-+]?{_NUMBER})",
    rf"({_APOS}(?:[msdMSD]|(?i:re|ve|ll))){_END}",
    r"([\u0092\u2019](?:[msdMSD]|(?i:re|ve|ll)))",
    r"('[tT])(?i:is|was)",
    rf"('[nN](?:{_APOS}|(?=\s|$))|[\u0092\u2019][nN]{_APOS}?|{_APOS}(?i:em|till?|cause|[2-9]0s))",
    r"(''|[`\x91-\x94\u2018-\u201f\u2039\u203a\u00ab\u00bb]{2})",
    rf"({_APOS}\d\d)(?:\s|$)",
    rf"({_TAG})",
    rf"(<?{_ADDRESS})",
    r"(@[a-zA-Z_][a-zA-Z_0-9]*)",
    rf"(#{_LETTER}+)",
    r"([<>]?[:;=][-oO*']?[()DPdpo\\{@|\[\]])(?![A-Za-z0-9])",
    r"([-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>'`]\))",
    r"(\(\d{2,3}\)[ \u00a0]?\d{3,4}[- \u00a0]?\d{3,5})",
    r"(-(?i:[lr][rcs]b)-)",
    r"(&(?i:amp|lt|gt|quot|apos|nbsp|[mn]dash|#\d+);)",
    r"(#{2,})",
    r"([\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)",
    r"([?!]+|@+|_+|\*+|(?:\\\*){1,3}|<<|>>|-+)",
)

# Tokens that pycocoevalcap takes out. The jar's brackets are not among them: it writes `-lrb-` where its wrapper, which
# lowers the case first, looks for `-LRB-`.
_PUNCTUATION = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
_WRITTEN = str.maketrans(
    {
        **{"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"},
        **{"¢": "cents", "£": "#", "¤": "$", "€": "$", "\x80": "$", "₠": "$"},
        **{"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "…": "..."},
        **dict.fromkeys("“«\x93", "``"),
        **dict.fromkeys('"”»\x94', "''"),
        **dict.fromkeys("‘‛‹\x91", "`"),
        **dict.fromkeys("’›\x92", "'"),
        **dict.fromkeys("–—―\x96\x97", "--"),
    }
)
_QUOTES = set("'`\x91\x92\x93\x94‘’‚‛“”„‟‹›«»")
_ENTITIES = {
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&nbsp;": "",
    "&mdash;": "",
    "&ndash;": "",
    "&quot;": "",
    "&apos;": "",
}
_SMILES = str.maketrans({"(": "-lrb-", ")": "-rrb-"})
# Marks that are tokens by themselves; any other (control characters, rarer currencies, private use) is skipped.
_SYMBOL = re.compile(
    "[!-~\x80\x91-\x94\x96\x97\xa1-\xbf\xd7\xf7\u02c2-\u02ff\u037e\u0387\u060c\u061b\u061f\u066a\u06d4\u0e3f\u2013-\u2023"
    "\u2026\u2030-\u203b\u203e-\u2042\u2044\u2070\u2074-\u208e\u20a0\u20a4\u20ac\u2100-\u214f\u2153-\u215e\u2190-\u2bff"
    "\u3001\u3002\u3012\uff01-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0\uffe1\uffe5\uffe6]"
)
_CLITIC = re.compile("[\x92’](?:[msd]|re|ve|ll)|n[\x92’]t", re.IGNORECASE)
_PLAIN = re.compile(r"[A-Za-z]+(?=[ \t]|$)")
_SPACES = re.compile(r"\s+")
_SPLIT = {"cannot", "gonna", "gotta", "lemme", "gimme", "wanna"}
_IS_LETTER = re.compile(_LETTER)


def ptb_tokens(caption: str) -> list[str]:
    """The tokens of one caption, lower-case and without punctuation, as pycocoevalcap's `PTBTokenizer` gives them.

    The rules are those of Stanford's tokeniser (CoreNLP 3.4.1), whose jar it runs. What differs:

    - the jar reads all captions of a set as one text, so that a caption that ends in an initial ("reads K.") loses its
      period where the *next* caption begins with "A", "The", "He" ...; here a caption stands for itself;
    - it takes a carriage return or a Unicode line separator for the end of the caption, and then gives every caption
      behind it to the wrong image; here these are white space;
    - letters that came to Unicode after 2014, scripts whose vowels are marks of their own joined by `_`, addresses
      within other text, and words without a space of more than 99 characters may be cut elsewhere.
    """
    text, tokens, at = caption.replace("\u00ad", ""), [], 0
    while at < len(text):
        if spaces := _SPACES.match(text, at):
            at = spaces.end()
            continue
        plain = _PLAIN.match(text, at)
        if plain and (word := plain[0].lower()) not in _SPLIT:
            tokens.append(word)
            at = plain.end()
            continue
        end = _token_end(text, at)
        tokens += _written(text[at:end])
        at = end
    return tokens


def _token_end(text: str, start: int) -> int:
    first = text[start]
    rules = _FROM_LETTER if _IS_LETTER.match(first) else _FROM_DIGIT if first.isdecimal() else _FROM_MARK
    end, longest = start + 1, start
    for rule in rules:
        found = rule.match(text, start)
        if found and found.end() > longest:
            end, longest = found.end(1), found.end()
    return end


def _written(token: str) -> list[str]:
    """What is counted of a token: nothing of punctuation, two words where a space is inside."""
    if token.lower() in _ENTITIES:
        token = _ENTITIES[token.lower()]
    elif len(token) == 1:
        known = _SYMBOL.match(token) or _IS_LETTER.match(token) or token.isdecimal()
        token = token.translate(_WRITTEN) if known else ""
    elif _CLITIC.fullmatch(token) or _QUOTES.issuperset(token):
        token = token.translate(_WRITTEN)
    elif len(token) <= 4 and not token.strip("-"):
        return []
    if not token or token in _PUNCTUATION:
        return []
    if token[0] == "<" and token[-1] == ">":
        return token.lower().split()
    if token.replace("&amp;", "").isalpha():
        token = token.replace("&amp;", "&")  # AT&amp;T
    return token.translate(_SMILES).lower().split()

"""The words that rendered text is made of, and the rule that keeps those of training and test apart.

The split rule: what a word comes to without case, accents and punctuation is hashed (CRC-32 of its UTF-8); one value in
four belongs to the test split, the rest to training. It holds for listed words, for made-up ones, for codes and for
the numbers among words alike, so a test picture of words or lines shows no word that training can have shown.
In receipts, charts and tables it holds for every word but the fixed ones of the form itself (`FRAME`): TOTAL, months,
days, "of", "by". Amounts, dates and values are numbers and follow no rule there.
"""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Literal
from zlib import crc32

import numpy as np

Split = Literal["train", "test"]
TEST_SHARE = 4
"""One word in this many belongs to the test split."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


COMMON = _words(
    """
    acorn actor air album alarm amber anchor angle animal ankle answer ant apple apron arch arm armour arrow art
    ash attic aunt autumn axis baby back badge bag baker ball bamboo band bank bar bark barn barrel base basin
    basket bath beach bead beak beam bear beard beaver bed bee beetle bell belt bench berry bicycle bird biscuit
    blade blanket block blossom boat body bolt bone book boot border bottle bottom bow bowl box boy branch brass
    brave bread breeze brick bridge bright broom brother brush bubble bucket bud bull bundle bus bush button
    cabin cable cage cake calm camel camera camp canal candle canoe canvas cap cape car card carpet carrot cart
    castle cat cattle cave ceiling cellar centre chain chair chalk chapel cheek cheese cherry chess chest
    chicken child chimney chin church circle city clay clean cliff climb clock cloth cloud clover coach coast
    coat coin collar colour comb comet compass cook copper coral cord cork corn corner cotton country cousin
    cover cow cradle crane crater crayon cream creek crew cricket crop crow crown cup curtain cushion dairy
    dance dawn day deck deep deer desert desk dew diamond dinner dish doctor dog doll dolphin donkey door dove
    dragon drawer dream dress drum duck dust eagle ear earth east echo edge egg elbow elm engine evening eye
    fabric face factory falcon farm father feather fence fern ferry fiddle field finger fire fish flag flame
    flask fleet flint floor flour flower flute foam fog forest fork fortune fountain fox frame fresh friend frog
    frost fruit funnel garden garlic gate giant ginger girl glacier glass globe glove glue goat gold goose grain
    granite grape grass gravel green ground grove guest guitar gull hair hall hammer hand harbour hare harp
    harvest hat hawk hay head heart hedge heel helmet hen herb herd heron hill hinge hive hole holiday honey
    hood hook horizon horn horse hotel hour house hunter hut ice inch ink iron island ivory ivy jacket jar jewel
    journey judge jug juice jungle juniper keel kettle key king kitchen kite kitten knee knife knot lace ladder
    lake lamb lamp lane lantern large lark laugh lawn leaf leather lemon lens letter level lever library light
    lily lime linen lion lizard lobster lock log long loom lorry lunch magnet maple marble march market mask
    mast match meadow medal melon metal mill mint mirror mist mitten moment monkey month moon morning moss moth
    mother motor mountain mouse mouth mud mule music nail name napkin narrow neck needle nest net night noise
    north nose note number nurse nut oak oar oat ocean office oil olive onion opera orange orbit orchard organ
    otter oven owl ox oyster paint palace palm pan panel paper parade park parrot party path pattern peach
    peacock pear pearl pebble pelican pen pencil people pepper perch petal piano picture pie pigeon pillow pilot
    pine pink pipe pirate planet plant plate plough plum pocket poem point pond pony poplar porch port potato
    pottery powder prairie prince print prize pulse pump puppet purple purse puzzle quail quarry queen quiet
    quill quilt rabbit radio raft rail rain raven razor reed reef ribbon rice ridge ring ripple river road robin
    rock roof room root rope rose round row rubber ruby rudder rug ruler rust saddle sail salad salmon salt sand
    sandal sauce scale scarf school science screw sea season seat seed shadow sheep shelf shell shield ship
    shirt shoe shop shore shovel silk silver singer sister skirt sky sleeve slope small smoke smooth snail snake
    snow soap sock soft soil song soup south spade spark sparrow spice spider spinach spiral spoon spring square
    squirrel stable stage stair stamp star station steam steel stem step stone stool store storm story stove
    stream street string strong sugar summer sun swallow swan sweet swift table tail tailor tar teacher temple
    tent thimble thorn thread throat throne thumb thunder ticket tide tiger timber tin toast tomato tongue tool
    tooth torch tower town toy track train travel tree trumpet trunk tulip tunnel turkey turtle twig uncle
    valley valve vase velvet vessel village vine violet violin voice volcano wagon wall walnut warm water wave
    wax weather weaver west whale wheat wheel whistle white willow wind window wing winter wire wolf wood wool
    worker world yard yarn year yellow yoke young zebra zinc
    """
)
FOODS = _words(
    """
    apples apricots bagels bananas barley basil beans beef beetroot berries bread broccoli butter cabbage cake
    carrots cashews celery cereal cheese cherries chicken chives chocolate cider cocoa coffee cookies couscous
    crackers cream cucumber dates dill eggs fennel figs flour garlic ginger grapes ham hazelnuts honey jam juice
    kale ketchup leeks lemons lentils lettuce limes mangoes milk millet mint muesli mushrooms mustard noodles
    nougat nuts oatmeal oil olives onions oranges oregano pancakes parsley pasta peaches pears peas pepper pesto
    pickles plums popcorn porridge potatoes pudding quinoa radishes raisins rice rolls rye sage salad salmon
    salt sausages soda soup spinach squash sugar syrup tea thyme toast tofu tomatoes trout tuna vanilla vinegar
    waffles walnuts water wine yeast yoghurt
    """
)
QUALITIES = _words(
    """
    baked bitter black brown classic cold creamy crisp crunchy dark dried extra fine fresh frozen garden gentle
    golden grated green grilled heavy hot large light lean local mild mixed natural old organic pale plain pure
    raw red rich ripe roasted rustic salted sharp simple sliced small smoked soft sour special spicy sweet thick
    thin tender toasted warm white whole wild winter yellow young
    """
)
SHOPS = _words(
    """
    bakery bistro canteen cellar corner deli depot diner express farm foods grill grocers house kiosk kitchen
    larder market mart outlet pantry patisserie provisions shop stall store stores supplies trade traders
    warehouse
    """
)
MEASURES = _words(
    """
    arrivals births bookings calls catches costs cycles deliveries demand departures donations downloads
    earnings exports failures fares flights goals growth guests harvest hours imports income jobs journeys
    lessons loans losses meals members orders output patients plays points production profit purchases rainfall
    readers repairs rents replies returns revenue sales savings shipments signals sightings spending stock
    supply tickets tonnage tours traffic trips turnover usage visitors visits votes wages waste yields
    """
)
COLUMNS = _words(
    """
    age area average balance budget capacity charge cost count debt delay density depth distance dose duration
    energy error fee flow force gain grade growth height humidity index interest length level limit load loss
    margin mass output pace payment power premium pressure price profit quantity quota range rank rate rating
    ratio rent reserve return risk sales salary score share size speed stock strain stress supply surface tax
    temperature thickness time toll torque total turnover usage value voltage volume wage wear weight width
    yield
    """
)
SUBJECTS = _words(
    """
    article brand class crop depot design district farm group harbour item kind line machine material model name
    office plant product project quarter region river road room route section series shop site species station
    store street team tool town unit valley village ward yard zone
    """
)
UNITS: Mapping[str, str] = MappingProxyType(
    {
        "area": "ha",
        "delay": "s",
        "depth": "m",
        "distance": "km",
        "duration": "h",
        "energy": "kWh",
        "flow": "l/s",
        "force": "N",
        "growth": "%",
        "height": "m",
        "humidity": "%",
        "length": "m",
        "load": "t",
        "mass": "kg",
        "power": "kW",
        "pressure": "bar",
        "share": "%",
        "speed": "km/h",
        "time": "s",
        "torque": "Nm",
        "voltage": "V",
        "volume": "l",
        "wear": "%",
        "weight": "kg",
        "width": "m",
        "yield": "t",
    }
)
"""Of some of `COLUMNS`."""
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
FRAME = frozenset(
    _words("total subtotal cash card change date time incl vat thank you till tel street eur of the in by x g")
).union(word.lower().replace("/", "") for word in (*MONTHS, *DAYS, *UNITS.values()))
"""Words of the forms themselves, which both splits show."""

# Chosen so that no made-up word of one syllable is a rude one.
_ONSETS = _words("b bl br cl d dr f fl fr g gl gr h j kr l m pl pr qu r sk sm sn st sw t th tr v w z")
_NUCLEI = _words("a e i o ai au ea ei ia oa ou ue")
_CODAS = (*[""] * 9, *_words("l n r s nd st th x lt lk ft ct rm rb ld nt"))
_ACCENTS = {
    "a": "àáâãäåæ",
    "c": "ç",
    "e": "èéêë",
    "i": "íîï",
    "n": "ñ",
    "o": "óôöøœ",
    "s": "šß",
    "u": "ùúûü",
    "y": "ýÿ",
    "z": "ž",
}
ACCENTED = "".join(_ACCENTS.values())
"""Letters beyond ASCII that made-up words may have, in lower case."""
# Without those that some face draws alike: I, l, 1, 0 and O stand in words and numbers only, where the others decide.
_CLEAR_LETTERS = "abdefghijmnqrtyABDEFGHJLMNQRTY"
_CLEAR_DIGITS = "23456789"
JOINERS = "-./:+&"
"""Marks inside codes."""
SYMBOLS = "#%@=*?!"
"""Rarer marks at the end of codes."""


def core(word: str) -> str:
    """What the split rule looks at: letters and digits without case and accents."""
    letters = unicodedata.normalize("NFKD", word.casefold())
    return "".join(letter for letter in letters if letter.isalnum())


def split_of(word: str) -> Split:
    """The split that a word belongs to; nothing but the word decides."""
    return "test" if crc32(core(word).encode()) % TEST_SHARE == 0 else "train"


@lru_cache(maxsize=64)
def of_split(words: tuple[str, ...], split: Split, lengths: tuple[int, int] = (1, 99)) -> tuple[str, ...]:
    """Those of `words` that belong to `split` and have so many characters, from `lengths[0]` to `lengths[1]`."""
    return tuple(word for word in words if split_of(word) == split and lengths[0] <= len(word) <= lengths[1])


def pick(rng: np.random.Generator, items: Sequence[str]) -> str:
    """One of them, each as likely as the next."""
    return items[int(rng.integers(len(items)))]


def common(rng: np.random.Generator, split: Split, lengths: tuple[int, int]) -> str:
    """An English word; a made-up one where none has so few or so many letters."""
    known = of_split(COMMON, split, lengths)
    return pick(rng, known) if known else pseudo(rng, split, lengths)


def pseudo(rng: np.random.Generator, split: Split, lengths: tuple[int, int], accents: bool = False) -> str:
    """A made-up word of syllables; with `accents`, at least one letter beyond ASCII where one can stand."""

    def made() -> str:
        letters = _syllables(rng, lengths)
        return _accented(rng, letters) if accents else letters

    return _of(split, made)


def _syllables(rng: np.random.Generator, lengths: tuple[int, int], tries: int = 6) -> str:
    """Whole syllables within the lengths; cut at the longest where that does not come about."""
    for _ in range(tries):
        goal, letters = int(rng.integers(lengths[0], lengths[1] + 1)), ""
        while len(letters) < goal:
            letters += pick(rng, _ONSETS) + pick(rng, _NUCLEI) + pick(rng, _CODAS)
        if len(letters) <= lengths[1]:
            break
    return letters[: lengths[1]]


def _accented(rng: np.random.Generator, word: str) -> str:
    places = [place for place, letter in enumerate(word) if letter in _ACCENTS and (place or letter != "s")]
    chosen = set(rng.permutation(places)[: 1 + int(rng.integers(2))].tolist())
    return "".join(pick(rng, _ACCENTS[letter]) if place in chosen else letter for place, letter in enumerate(word))


def number(rng: np.random.Generator, split: Split, lengths: tuple[int, int]) -> str:
    """A count, an amount with cents or a share in percent; of at most seven characters where that is long enough."""
    longest = max(lengths[0], min(7, lengths[1]))

    def made() -> str:
        length = int(rng.integers(lengths[0], longest + 1))
        digits = "".join(map(str, rng.integers(0, 10, length)))
        plain = str(rng.integers(1, 10)) + digits[1:]
        form = int(rng.integers(3))
        if form == 1 and length >= 4:
            return f"{plain[:-3]}.{plain[-2:]}"
        return f"{plain[:-1]}%" if form == 2 and length >= 2 else plain

    return _of(split, made)


def code(rng: np.random.Generator, split: Split, lengths: tuple[int, int], symbols: bool = False) -> str:
    """Letters and digits in no order, as of an article or a room, with a mark inside; `symbols` for one at the end."""

    def made() -> str:
        length = int(rng.integers(lengths[0], lengths[1] + 1))
        letters = [pick(rng, _CLEAR_LETTERS if rng.random() < 0.55 else _CLEAR_DIGITS) for _ in range(length)]
        if length >= 4:
            letters[int(rng.integers(1, length - 2))] = pick(rng, JOINERS)
        if symbols and length >= 3:
            letters[-1] = pick(rng, SYMBOLS)
        return "".join(letters)

    return _of(split, made)


def mixed_case(rng: np.random.Generator, word: str) -> str:
    """Each letter large or small at random, but i small and L large: in most faces I and l are one stroke.

    A letter whose capital is more than one character stays.
    """
    ups = (rng.random(len(word)) < 0.5).tolist()
    return "".join(
        letter.upper() if letter == "l" or (up and letter not in "iìíîï" and len(letter.upper()) == 1) else letter
        for letter, up in zip(word, ups, strict=True)
    )


def name(rng: np.random.Generator, split: Split, lengths: tuple[int, int] = (4, 8)) -> str:
    """A made-up name with a capital."""
    return pseudo(rng, split, lengths).capitalize()


def _of(split: Split, made: Callable[[], str]) -> str:
    """The first of `split` that `made` gives; one in four tries is of test."""
    while True:
        word = made()
        if split_of(word) == split:
            return word

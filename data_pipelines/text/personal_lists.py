"""The English words by which personal numbers and names are known, in lower case."""

ONES = "zero one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth "
    "sixteenth seventeenth eighteenth nineteenth twentieth thirtieth"
).split()
DIGITS = dict.fromkeys(ONES, 1) | dict.fromkeys(TEENS, 2) | dict.fromkeys(TENS, 1)
DIGITS |= {"oh": 1, "o": 1, "nought": 1, "hundred": 0, "thousand": 0, "double": 1, "triple": 2}
MONTHS = (
    "january february march april may june july august september october november december jan feb mar apr jun jul aug "
    "sep sept oct nov dec"
).split()
BETWEEN = frozenset("and dash hyphen uh um er then slash dot point".split())
UNITS = frozenset(
    "dollars dollar cents cent bucks percent minutes minute hours hour days day weeks week months month years year "
    "o'clock am pm a.m p.m miles mile feet pounds people times kilograms square points calories degrees gallons".split()
)
NUMBER_CUES = frozenset(
    "number phone cell mobile telephone fax card account social ssn routing policy member membership confirmation "
    "reference tracking ticket passport licence license extension ending digits pin passcode zip postcode id code "
    "order invoice serial".split()
)
BIRTH_CUES = frozenset("birth birthday birthdate born dob".split())
STREETS = frozenset("street st avenue ave road rd boulevard blvd lane ln parkway pkwy terrace".split())
LOOSE_STREETS = frozenset("drive dr court ct way place pl circle square highway hwy trail apartment apt suite".split())
TLDS = frozenset("com org net edu gov io co uk us info biz de".split())
NO_LOCAL = frozenset(
    "is it's its e-mail email mail address to the my at me a you reach send sent write yes yeah okay so and or".split()
)
NAME_CUES = (
    ("my", "name", "is"), ("my", "name's"), ("your", "name", "is"), ("name", "is"), ("the", "name's"), ("i'm",),
    ("i", "am"), ("this", "is"), ("call", "me"), ("speaking", "with"), ("speaking", "to"), ("mister",), ("mr",),
    ("mrs",), ("missus",), ("ms",), ("miss",), ("named",), ("called",), ("name", "of"), ("first", "name"),
    ("last", "name"), ("last", "name", "is"), ("under",),
)  # fmt: skip
SURE_NAME_CUES = frozenset({("my", "name", "is"), ("my", "name's"), ("your", "name", "is"), ("last", "name", "is")})
"""After these the next word is a name, whatever it is."""
NO_NAMES = frozenset(
    "a an the and or but not in on at it is i i'm so just here there going from with for to of calling sorry afraid "
    "sure glad happy looking trying your you my our his her their that this what who how when where why yes no okay ok "
    "well also very really still about on to all one monday tuesday wednesday thursday friday saturday sunday speaker "
    "agent user customer caller left right main other english american spanish mom dad mister "
    "misses miss mr mrs ms doctor dr thank thanks great perfect sure alright right fine excellent good hi hello "
    "yeah yep "
    "nope got let can could do does what's perfectly absolutely certainly lovely wonderful how's it's that's".split()
)
AMBIGUOUS = frozenset(
    "will may mark grace rose hope faith bill frank jack rich drew bob sue pat chase dawn summer april june august "
    "joy art page park ray gene cash young long black white green brown king price best case bell cook day field "
    "hunt law love moody moss powers rush short small stone street sweet way weeks wood cross hart holly ivy lily "
    "jade ruby miles cannon power marsh boone banks".split()
)
"""Names that are words as well: these count as names only where they have a capital or stand after a cue."""

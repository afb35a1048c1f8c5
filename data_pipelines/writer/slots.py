"""Values for the slots of a template: prices, times, dates, numbers, ids, names.

A slot spec is a kind and its bounds: "money 8 20 0.5", "number 2 12", "time 9 17 30" (hours, step in minutes),
"time_after open 7 10 60" (hours after slot `open`), "money_above price 2 9 0.5", "date", "weekday", "id R- 4"
(prefix, digits; "_" in the prefix is a space, and after a dash speech reads digit by digit). Any slot that is
not in the specs of its domain is a choice from a list of its business; `item2` and `item3` are further choices from
the list of `item`.
"""

from random import Random
from string import Formatter

FACT_TYPES = {
    "money": "money",
    "money_above": "money",
    "number": "number",
    "time": "time",
    "time_after": "time",
    "date": "date",
    "weekday": "date",
    "id": "id",
}
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
MONTHS = "January February March April May June July August September October November December".split()


class Slots(dict[str, str]):
    """Slot values of one script, drawn when a template first asks for them; `types` holds the type of each one."""

    def __init__(self, rng: Random, specs: dict[str, str], lists: dict[str, list[str]], fixed: dict[str, str]) -> None:
        super().__init__(fixed)
        self.rng, self.specs, self.lists = rng, specs, lists
        self.types = dict.fromkeys(fixed, "name")
        self.amounts: dict[str, float] = {}

    def __missing__(self, name: str) -> str:
        if name in self.specs:
            kind, *bounds = self.specs[name].split()
            self.types[name] = FACT_TYPES[kind]
            self[name] = self._drawn(name, kind, bounds)
        else:
            family = name.rstrip("0123456789")
            taken = {self[other] for other in self if other.rstrip("0123456789") == family}
            self.types[name] = "phrase"
            self[name] = self.rng.choice([text for text in self.lists[family] if text not in taken])
        return self[name]

    def _drawn(self, name: str, kind: str, bounds: list[str]) -> str:
        rng = self.rng
        if kind == "weekday":
            return rng.choice(WEEKDAYS)
        if kind == "date":
            return f"{rng.choice(MONTHS)} {ordinal(1 + rng.randrange(28))}"
        if kind == "id":
            prefix, digits = bounds
            return prefix.replace("_", " ").lstrip() + "".join(rng.choice("123456789") for _ in range(int(digits)))
        if kind in ("time_after", "money_above"):
            base, bounds = bounds[0], bounds[1:]
            low, high, step = (float(b) for b in bounds)
            assert self[base]  # This draws the base if it was not drawn yet.
            low, high = self.amounts[base] + low, self.amounts[base] + high
        else:
            low, high, step = (float(b) for b in [*bounds, "1"][:3])
        step = step / 60 if kind.startswith("time") else step
        amount = low + step * rng.randrange(int((high - low) / step + 1e-9) + 1)
        self.amounts[name] = amount
        return {"money": money, "time": clock, "number": lambda n: f"{n:g}"}[kind.split("_")[0]](amount)


def slots_of(template: str) -> list[str]:
    """The slot names of a template in order, each once."""
    return list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name))


def money(amount: float) -> str:
    """An amount in dollars: 8.5 is "$8.50", 8.0 is "$8"."""
    return f"${amount:.0f}" if abs(amount - round(amount)) < 1e-6 else f"${amount:.2f}"


def clock(hours: float) -> str:
    """A time of day in hours: 16.5 is "4:30 PM", 9.0 is "9 AM", 12.0 is "12 PM"."""
    hour, minute = divmod(round(hours * 60), 60)
    suffix = "AM" if hour % 24 < 12 else "PM"
    hour = hour % 12 or 12
    return f"{hour}:{minute:02d} {suffix}" if minute else f"{hour} {suffix}"


def ordinal(day: int) -> str:
    """A day of the month: 12 is "12th", 22 is "22nd"."""
    ending = "th" if 10 <= day % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{ending}"

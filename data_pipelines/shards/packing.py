"""How the sequences of a step are shared out: balanced micro-batches of bounded size, the same number on each rank."""

from collections.abc import Sequence
from heapq import heapify, heapreplace

from model.errors import UserError


def packed(frames: Sequence[int], room: Sequence[int], *, ranks: int, budget: int) -> list[list[int]]:
    """Packs the sequences of one step into micro-batches, those with most frames first.

    frames: of each sequence, which are balanced; room: the most frames that each may turn out to have, whose sum in a
    micro-batch is at most `budget`. The result holds the numbers of the sequences of ranks x passes micro-batches, none
    empty, in as few passes as this way finds: rank r takes number r, r + ranks, ..., so that the ranks of a pass have
    nearly equal ones. It is the same on every machine.

    The longest sequence goes to the emptiest micro-batch (Graham's LPT rule); then sequences are moved or swapped while
    this lowers the fullest one.
    Raises: UserError if a sequence exceeds the budget, or the ranks do not divide the number of sequences.
    """
    if max(room) > budget:
        raise UserError(f"a sequence of {max(room)} frames exceeds the budget of {budget}", code="bad-combination")
    if len(frames) % ranks:
        raise UserError(
            f"{len(frames)} sequences cannot be shared by {ranks} ranks: make it a multiple", code="bad-combination"
        )
    passes = -(-sum(room) // (ranks * budget))
    while True:
        # With as many micro-batches as sequences each holds one, so that this ends.
        parts = _balanced(frames, ranks * passes)
        if all(sum(room[i] for i in part) <= budget for part in parts):
            return sorted((sorted(part) for part in parts), key=lambda part: -sum(frames[i] for i in part))
        passes += 1


def _balanced(frames: Sequence[int], count: int) -> list[list[int]]:
    """Parts of nearly equal sums, none empty if there are at least `count` sequences."""
    parts: list[list[int]] = [[] for _ in range(count)]
    # Parts with fewer members come first among equals, since a sequence may have no frames.
    emptiest = [(0, 0, number) for number in range(count)]
    heapify(emptiest)
    for i in sorted(range(len(frames)), key=lambda i: -frames[i]):
        total, size, number = emptiest[0]
        parts[number].append(i)
        heapreplace(emptiest, (total + frames[i], size + 1, number))
    sums = [sum(frames[i] for i in part) for part in parts]
    while _lower_the_fullest(frames, parts, sums):
        pass
    return parts


def _lower_the_fullest(frames: Sequence[int], parts: list[list[int]], sums: list[int]) -> bool:
    """Makes the exchange with another part that leaves the larger of the two lowest; False if none lowers it."""
    full = max(range(len(parts)), key=sums.__getitem__)
    best = (sums[full], -1, -1, -1)
    for number, part in enumerate(parts):
        for given in parts[full] if number != full else ():
            for taken in (*part, -1) if len(parts[full]) > 1 else part:  # -1: nothing is taken in exchange.
                moved = frames[given] - (frames[taken] if taken >= 0 else 0)
                best = min(best, (max(sums[full] - moved, sums[number] + moved), number, given, taken))
    _, number, given, taken = best
    if number < 0:
        return False
    for part, out, into in ((parts[full], given, taken), (parts[number], taken, given)):
        if out >= 0:
            part.remove(out)
        if into >= 0:
            part.append(into)
    sums[full], sums[number] = (sum(frames[i] for i in parts[k]) for k in (full, number))
    return True

"""What every error of a user's input is like, whoever raises it."""

import pickle

from model.errors import UserError


def test_a_message_can_be_printed_and_crosses_processes_whatever_names_it_holds() -> None:
    why = UserError("a\ud800b\x1b[2J\u202ec: no such file", code="not-found")
    assert str(why) == "ab[2Jc: no such file"
    str(why).encode()
    again = pickle.loads(pickle.dumps(why))
    assert str(again) == str(why) and again.code == "not-found"

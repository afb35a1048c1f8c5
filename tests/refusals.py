"""What tests expect of a refusal: its code and the value it names. Wording may improve freely."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from model.errors import Code, UserError


@contextmanager
def refused(code: Code, *names: object, error: type[UserError] = UserError) -> Iterator[None]:
    """The block raises `error` with `code`, in one line that names each of `names` (as text)."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert caught.value.code == code, f"{caught.value.code}: {message}"
    assert "\n" not in message, message
    missing = [str(name) for name in names if str(name) not in message]
    assert not missing, f"{missing} not in: {message}"

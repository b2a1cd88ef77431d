"""A short run of tests/fuzz.py, the same each time; `make fuzz` makes a long one, which is another each time."""

from __future__ import annotations

from app.routes import API
from tests import fuzz

EXAMPLES = 2  # of each kind for each operation; `make fuzz` makes many more


def test_whatever_is_sent_is_answered_as_the_document_says(database_url: str, redis_url: str) -> None:
    done = fuzz.run(database_url, redis_url, EXAMPLES)
    every = {f"{method} {path}" for path, actions in API.items() for method in actions}
    assert set(done.sent) == every
    assert min(done.sent.values()) >= EXAMPLES
    # It gets behind validation: some of all that is sent succeeds, in most of the operations.
    succeeded = {operation for operation, statuses in done.answers.seen.items() if min(statuses) < 300}
    assert len(succeeded) > 0.8 * len(every), sorted(every - {f"{method} {path}" for path, method in succeeded})
    assert {200, 201, 202, 400, 404, 409, 415} <= set(done.statuses)

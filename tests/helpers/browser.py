"""How long a browser test waits, in milliseconds: for the page itself, and for work on the model."""

PAGE = 60_000
WORK = 400_000
"""On a busy machine, where the work of other tests goes on beside it."""

"""`hookwright demo`: the platform, a receiver, and events on their way between the two."""

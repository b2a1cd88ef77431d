"""An hour of mixed faults under load, and an exact ledger at its end: `make soak`, or

    python -m tests.faults.soak --minutes 60 --rate 200 --seed 7

| module | holds |
|---|---|
| `plan` | which fault comes when, drawn from the seed before anything starts |
| `stage` | the processes and services, and how each fault is done to them |
| `producer` | an event each 1/rate seconds whatever comes back, repeated until it is accepted |
| `receiver` | misbehaves on demand, checks signatures, remembers 26 bytes a request |
| `books` | the ledger |
| `report` | a line a minute, and memory |
"""

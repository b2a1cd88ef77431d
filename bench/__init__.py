"""Load and latency on a real platform, with a ledger after every run: `python -m bench`, or `make bench`.

docs/performance.md says what each figure means. The parts, each a file:

| file | does |
|---|---|
| `load` | a process that posts events, in closed or open loop |
| `receiver` | a process that counts webhooks and notes when each came |
| `platform` | `hookwright up` in a data folder of its own |
| `usage` | CPU time and memory of its processes, from /proc |
| `scenarios` | what is run, and the figures that come of it |
| `ledger` | accepted = delivered + dead + pending, received = delivered |
| `floors` | what the parts alone can do on this machine, under the same load |
| `report` | the table and the JSON file |
"""

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
| `running` | signals, faults, exit codes |

`python -m bench.scale` measures what size costs:

| file | does |
|---|---|
| `history` | makes millions of deliveries of the past |
| `scale_lists` | times every list, count and preview on them |
| `scale_cases` | which those are |
| `costs` | what deliveries cost PostgreSQL; claims from a backlog; very wide events |
| `backlog` | an outage with a million deliveries waiting, and an organization that floods |
| `several` | several web processes on one database |
| `workers` | several workers, each with a share of a core |
| `quota` | bounds a process to that |
"""

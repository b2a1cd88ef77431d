"""PostgreSQL and Valkey of our own, for running without any other infrastructure.

```
data_dir/
├── postgres/            the database cluster (or, as root, see `postgres.location`)
├── postgres.password    mode 600, the owner's; also `postgres.lock`, held while it runs
├── postgres.app.password    mode 600, the application's
├── postgres.location    only as root, if the database's user can't enter data_dir: where it is
├── valkey/              append-only file; beside it `valkey.lock`
├── secret_keys          mode 600: without it, sealed secrets in the database can't be opened
└── logs/                postgres.log, valkey.log
/tmp/hookwright-<uid>-<hash of data_dir>/     mode 700: the sockets (a socket's path ends at 107 bytes)
```
"""

from cli.embedded.endpoints import Endpoints, find_running
from cli.embedded.postgres import EmbeddedPostgres
from cli.embedded.secret_keys import ensure_secret_keys, secret_keys_file
from cli.embedded.valkey import EmbeddedValkey

__all__ = [
    "EmbeddedPostgres",
    "EmbeddedValkey",
    "Endpoints",
    "ensure_secret_keys",
    "find_running",
    "secret_keys_file",
]

"""What the demo prints when every delivery has ended: where to look, and commands that work as they stand."""

from __future__ import annotations

from collections.abc import Mapping

from cli.demo.receiver import MEND, Receiver
from cli.invocation import our_command


def ending(url: str, entrance: str, key: str, receiver: Receiver, states: Mapping[str, int], dead: str) -> str:
    """`dead` is the id of the delivery in the dead-letter queue; `entrance` a path of the pages, where to go in."""
    counted = ", ".join(f"{count} {state}" for state, count in sorted(states.items(), reverse=True))
    header = f"-H 'X-API-Key: {key}'"
    command = our_command()
    return f"""
{sum(states.values())} deliveries: {counted}. The last one waits in the dead-letter queue.

In the browser, see what failed and send it again:
  {url}{entrance}
The receiver that fails is mended by
  curl -sX POST {receiver.url(MEND)}

The API     {url}/v1
API key     {key}

List the dead letters:
  curl -sg {header} '{url}/v1/deliveries?filters[status]=dead'
Send the dead letter again, once the receiver is mended; its delivery shows up here:
  curl -sX POST {header} {url}/v1/deliveries/{dead}/replay
Send an event of your own:
  curl -sX POST {header} -H 'Content-Type: application/json' {url}/v1/events \\
       -d '{{"event_type": "order.created", "data": {{"order": "A-1003"}}}}'
Or by the command line:
  export HOOKWRIGHT_URL={url} HOOKWRIGHT_API_KEY={key}
  {command} delivery list --status dead
  {command} delivery show {dead}

Ctrl-C stops everything.
"""

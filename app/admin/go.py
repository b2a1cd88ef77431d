"""Going to anything: by its id, a producer's own event id, a name, an email or a receiver's host."""

from __future__ import annotations

from urllib.parse import urlencode

from starlette.responses import Response

from app.admin import links
from app.admin.visit import Visit
from core import ids
from core.access import api_keys
from core.access.models import Role
from core.listing import search
from core.listing.search import Hit

_PREFIXES = {
    search.EVENT: ids.EVENT,
    search.ORGANIZATION: ids.ORGANIZATION,
    search.SUBSCRIPTION: ids.SUBSCRIPTION,
    search.API_KEY: ids.API_KEY,
    search.USER: ids.USER,
}


async def show(visit: Visit) -> Response:
    """On to the page where there is one answer; else a list of what was found, or what can be searched for."""
    text = visit.request.query_params.get("q", "").replace("\0", "").strip()[: search.MAX_CHARS]
    if text.startswith(api_keys.MARK):
        text = text[: api_keys.PREFIX_CHARS]  # by which it is found; the rest is nobody's business
    shown = search.id_in(text)
    path = links.link_of(shown, visit.me.role) if shown else None
    async with visit.services.database.driver() as driver:
        if shown and path and path.startswith("/go?"):
            owner = await search.owner_of(driver, shown)
            path = links.link_of(owner, visit.me.role) if owner else None
        if path:
            return visit.redirect(path)
        found = search.Found()
        if text and not shown:
            found = await search.search(driver, text, access=visit.may(Role.ADMIN))
    hits = [{"kind": hit.kind, "name": hit.name, "path": _path(hit)} for hit in found.hits]
    if len(hits) == 1 and not found.too_slow:
        return visit.redirect(str(hits[0]["path"]))
    return visit.render(
        "go/show.html",
        text=text,
        is_id=shown is not None,
        hits=hits,
        too_slow=found.too_slow,
        subscriptions=f"/subscriptions?{urlencode({'text': found.host})}" if found.host else "",
        there_are_subscriptions=any(hit.kind == search.SUBSCRIPTION for hit in found.hits),
    )


def _path(hit: Hit) -> str | None:
    if hit.kind == search.EVENT_TYPE and hit.organization_id is not None:
        return links.event_type(ids.show(ids.ORGANIZATION, hit.organization_id), hit.name)
    return links.link_of(ids.show(_PREFIXES[hit.kind], hit.id))

"""Signing in with an identity provider: out to it, and back.

Out by a link and not by a form: the content policy's `form-action` would hold for where a form is redirected to.
"""

from __future__ import annotations

from starlette.responses import RedirectResponse, Response

from app.admin import cookies
from app.admin.visit import Visit, local_path
from core.access import oidc_sign_in
from core.access.oidc import OidcFailed, Provider
from core.errors import NotFound, ValidationFailed

PATH, CALLBACK_PATH = "/sign-in/sso", "/sign-in/sso/callback"


async def begin(visit: Visit) -> Response:
    to = local_path(visit.request.query_params.get("next", "/"))
    services = visit.services
    begun = await oidc_sign_in.begin(services.database, services.sealer, _provider(visit), to)
    response = RedirectResponse(begun.url, 303)
    cookies.put(response, cookies.OIDC, begun.cookie, visit.public_url, int(oidc_sign_in.LIFETIME.total_seconds()))
    return response


async def end(visit: Visit) -> Response:
    provider, given, services = _provider(visit), visit.request.query_params, visit.services
    cookie = cookies.get(visit.request, cookies.OIDC, visit.public_url)
    code, state = given.get("code", ""), given.get("state", "")
    if "error" in given:
        raise OidcFailed("The identity provider did not sign you in; start again from the sign-in page")
    if not code or not state:
        raise ValidationFailed("This address is where the identity provider sends you; begin at the sign-in page")
    if given.get("iss", provider.issuer) != provider.issuer:  # RFC 9207
        raise OidcFailed("This answer came from another identity provider; start again from the sign-in page")
    done, to = await oidc_sign_in.end(
        services.database,
        services.sealer,
        provider,
        state=state,
        cookie=cookie,
        code=code,
        browser=visit.browser,
    )
    response = visit.signed_in(done, to)
    cookies.drop(response, cookies.OIDC, visit.public_url)
    return response


def _provider(visit: Visit) -> Provider:
    if visit.services.oidc is None:
        raise NotFound("Single sign-on is not configured")
    return visit.services.oidc

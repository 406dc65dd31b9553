"""What a frontend asks before it shows anything."""

from pydantic import Field
from starlette.responses import Response

from app.interfaces.api.dependencies import RequestServices
from app.interfaces.api.openapi import answers, api_router
from app.interfaces.api.schemas import Schema, SuccessAnswer
from app.interfaces.envelope import success

router = api_router("config", "/api/v1/config")


class FrontendConfig(Schema):
    """The choices of the operator that published frontends know."""

    auth_provider: str = Field(description="How to log in: `none`, `tokens`, `oidc` or `proxy`.")
    show_github_button: bool
    github_repository_url: str
    google_analytics_id: str
    claw_enabled: bool = Field(description="false: this service has no such assistant.")


class FrontendConfigAnswer(SuccessAnswer):
    """The envelope that contains `FrontendConfig`."""

    data: FrontendConfig


@router.get("/frontend", responses=answers(FrontendConfigAnswer))
async def get_frontend_config(services: RequestServices) -> Response:
    """Return what frontends show or leave out."""
    return success(
        {
            "auth_provider": services.auth_provider,
            "show_github_button": False,
            "github_repository_url": "",
            "google_analytics_id": "",
            "claw_enabled": False,
        }
    )

"""The models that a session can choose from."""

from pydantic import Field
from starlette.responses import Response

from app.interfaces.api.dependencies import Owner, RequestServices
from app.interfaces.api.openapi import answers, api_router
from app.interfaces.api.schemas import Schema, SuccessAnswer
from app.interfaces.envelope import success

router = api_router("models", "/api/v1/models")


class ModelItem(Schema):
    """A model, without its address and its key."""

    name: str = Field(description="Name of the profile: what requests send as `model`.", examples=["fast"])
    model: str = Field(description="Name of the model at its provider.", examples=["gpt-4o"])
    default: bool = Field(description="Whether sessions that name no model use this one.")
    vision: bool = Field(description="Whether it reads pictures.")
    context_tokens: int = Field(description="Size of its context window.")


class ModelList(Schema):
    """All models, in the order of the configuration."""

    models: list[ModelItem]


class ModelsAnswer(SuccessAnswer):
    """The envelope that contains `ModelList`."""

    data: ModelList


@router.get("", responses=answers(ModelsAnswer))
async def list_models(services: RequestServices, _owner: Owner) -> Response:
    """Return the models that a session can use."""
    catalog = services.models
    models = [
        {
            "name": name,
            "model": model.profile.model,
            "default": name == catalog.default,
            "vision": model.profile.vision,
            "context_tokens": model.profile.context_tokens,
        }
        for name, model in catalog.models.items()
    ]
    return success({"models": models})

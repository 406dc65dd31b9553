"""What is sent, as models. They write the OpenAPI document; the routes send ready bytes, and tests compare the two."""

from pydantic import BaseModel, ConfigDict


class Schema(BaseModel):
    """A model that only describes. Built when the document is first asked for: the service starts without it."""

    model_config = ConfigDict(defer_build=True)

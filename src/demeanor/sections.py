"""What every section of a contract has in common."""

from __future__ import annotations

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from demeanor.faults import fault

Text = Annotated[str, Field(min_length=1)]


class Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _yes_is_no_number(cls, data: Any) -> Any:
        """pydantic would read `yes` as 1."""
        for name, field in cls.model_fields.items():
            if isinstance(data, dict) and isinstance(data.get(name), bool):
                kinds = {field.annotation, *get_args(field.annotation)}
                if bool not in kinds and kinds & {int, float}:
                    raise fault(f"must be a number, not {data[name]}", name)
        return data


class Section(Lenient):
    model_config = ConfigDict(extra="forbid")

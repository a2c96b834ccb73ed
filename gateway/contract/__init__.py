"""The messages the outside relies on, as pydantic models: the source of validation and of the published schemas."""

"""The contracts as documents for others: JSON Schema of each message, and AsyncAPI 3 of all that goes through the queue.

Generated from the models that validate, so that they cannot differ; `gateway schema` prints them.
"""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel

from gateway.contract.control import ControlEmail
from gateway.contract.email_send import SendEmail
from gateway.contract.events import CONTENT_TYPE, CloudEvent, EventType
from gateway.contract.post_create import CreatePost
from gateway.contract.request import RequestAnswer

COMMANDS: dict[str, tuple[type[BaseModel], tuple[str, ...]]] = {
    "email.send": (SendEmail, ("email.send", "email.send.urgent", "email.send.bulk", "email.send.serial")),
    "email.control": (ControlEmail, ("email.control",)),
    "post.create": (CreatePost, ("post.create",)),
}
MODELS: dict[str, type[BaseModel]] = {name: model for name, (model, _) in COMMANDS.items()} | {
    "answer": RequestAnswer,
    "event": CloudEvent,
}
_EVENTS: tuple[str, ...] = get_args(EventType)
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_REF = "#/components/schemas/{model}"


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of one contract model; raises KeyError for a name that is not in `MODELS`."""
    return {"$schema": _DRAFT} | MODELS[name].model_json_schema()


def schemas(*models: type[BaseModel]) -> dict[str, Any]:
    """The models as entries of `components.schemas`, each with what it refers to."""
    found: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template=_REF)
        found |= schema.pop("$defs", {})
        found[model.__name__] = schema
    return found


def asyncapi() -> dict[str, Any]:
    """AsyncAPI 3: the commands that apps publish, the answers they get, and the events that they hear."""
    channels = {name: _command_channel(name, COMMANDS[name][1]) for name in COMMANDS}
    channels["answers"] = {
        "address": None,
        "description": "the queue that reply_to of a command names: amq.rabbitmq.reply-to, amq.gen-* or reply.*",
        "messages": {"answer": {"$ref": "#/components/messages/answer"}},
    }
    channels["events"] = {
        "address": "gateway.events",
        "description": "topic exchange; the routing key is the event's type",
        "messages": {kind: {"$ref": f"#/components/messages/{kind}"} for kind in _EVENTS},
    }
    messages = {name: _message(model, "application/json") for name, (model, _) in COMMANDS.items()}
    messages |= {"answer": _message(RequestAnswer, "application/json")}
    messages |= {kind: _message(CloudEvent, CONTENT_TYPE) | {"name": kind} for kind in _EVENTS}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "gateway", "version": "1", "description": "Commands in, events out; each at least once."},
        "channels": channels,
        "operations": _operations(),
        "components": {"messages": messages, "schemas": schemas(*MODELS.values())},
    }


def _command_channel(name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    return {
        "address": "gateway.commands",
        "description": f"topic exchange; routing key {' or '.join(keys)}; message_id = the request's id",
        "messages": {name: {"$ref": f"#/components/messages/{name}"}},
    }


def _operations() -> dict[str, Any]:
    receive = {
        name: {
            "action": "receive",
            "channel": {"$ref": f"#/channels/{name}"},
            "summary": f"an app asks for {name}",
            "reply": {
                "address": {"location": "$message.header#/reply_to"},
                "channel": {"$ref": "#/channels/answers"},
            },
        }
        for name in COMMANDS
    }
    tell = {"action": "send", "channel": {"$ref": "#/channels/events"}, "summary": "what became of it is told"}
    return receive | {"events": tell}


def _message(model: type[BaseModel], content_type: str) -> dict[str, Any]:
    return {"contentType": content_type, "payload": {"$ref": f"#/components/schemas/{model.__name__}"}}

"""litellm as a library, with its providers openai/ and anthropic/."""

import json
import logging

import litellm
from checks import check, given, raised, weather_of
from pydantic import BaseModel

logging.disable(logging.WARNING)
litellm.telemetry = False
PLACES = {
    "openai": {"model": f"openai/{given.model}", "api_base": f"{given.url}/v1", "api_key": given.key},
    "anthropic": {"model": f"anthropic/{given.model}", "api_base": given.url, "api_key": given.key},
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Person(BaseModel):
    name: str
    age: int


def ask(text, **more):
    return {"messages": [{"role": "user", "content": text}], "num_retries": 0, "max_retries": 0, **more}


def each(function):
    """A value for each provider."""
    return {name: function(place) for name, place in PLACES.items()}


@check
def version():
    return [litellm.__name__, all(callable(getattr(litellm, name)) for name in ("completion", "acompletion"))]


@check
def create(text):
    def one(place):
        answer = litellm.completion(**place, **ask(text))
        return [answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage.prompt_tokens_details.cached_tokens]

    return each(one)


@check
def stream(text):
    def one(place):
        chunks = list(litellm.completion(**place, **ask(text, stream=True, stream_options={"include_usage": True})))
        pieces = [piece for chunk in chunks for choice in chunk.choices if (piece := choice.delta.content)]
        return ["".join(pieces), len(pieces) > 1, litellm.stream_chunk_builder(chunks).usage.completion_tokens]

    return each(one)


def rounds(place, text):
    body = ask(text, tools=[TOOL])
    while True:
        message = litellm.completion(**place, **body).choices[0].message
        if not message.tool_calls:
            return message.content
        body["messages"].append(message.model_dump())
        for call in message.tool_calls:
            city = json.loads(call.function.arguments)["city"]
            body["messages"].append({"role": "tool", "tool_call_id": call.id, "content": weather_of(city)})


@check
def tools(text):
    return rounds(PLACES["openai"], text)


@check
def tools_anthropic(text):
    return rounds(PLACES["anthropic"], text)


@check
def parse(text):
    return json.loads(litellm.completion(**PLACES["openai"], **ask(text, response_format=Person)).choices[0].message.content)


@check
def parse_anthropic(text):
    """It knows that this model has structured output by a tool of its own."""
    return json.loads(litellm.completion(**PLACES["anthropic"], **ask(text, response_format=Person)).choices[0].message.content)


@check
def thinking(text):
    def one(place):
        message = litellm.completion(**place, **ask(text, reasoning_effort="low", drop_params=True)).choices[0].message
        return [message.reasoning_content, message.content]

    return each(one)


@check
async def asynchronous(text):
    parts = await litellm.acompletion(**PLACES["openai"], **ask(text, stream=True))
    return "".join([chunk.choices[0].delta.content or "" async for chunk in parts])


@check
def responses(text):
    answer = litellm.responses(**PLACES["openai"], input=text)
    return answer.output[0].content[0].text


@check
def errors(text):
    return each(lambda place: type(raised(lambda: litellm.completion(**place, **ask(text)))).__name__)


@check
def bad_key():
    return each(lambda place: type(raised(lambda: litellm.completion(**{**place, "api_key": "wrong"}, **ask("Hello.")))).__name__)

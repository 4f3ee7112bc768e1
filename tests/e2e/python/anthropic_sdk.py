"""anthropic: messages whole and streamed, tools, thinking, structured output, caching, documents, counting, models, errors."""


import anthropic
from anthropic import Anthropic, AsyncAnthropic, beta_tool
from checks import cancelled_midway, check, given, raised, weather_of
from pydantic import BaseModel

client = Anthropic(base_url=given.url, api_key=given.key, max_retries=0)
WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


class Person(BaseModel):
    name: str
    age: int


def ask(content, **more):
    return {"model": given.model, "max_tokens": 2000, "messages": [{"role": "user", "content": content}], **more}


@check
def version():
    return anthropic.__version__


@check
def create(text):
    message = client.messages.create(**ask(text, system="Be brief.", stop_sequences=["END"]))
    return {
        "content": [block.to_dict() for block in message.content],
        "stop": message.stop_reason,
        "cache_read": message.usage.cache_read_input_tokens,
        "request_id": message._request_id,
    }


@check
def stream(text):
    kinds = [event.type for event in client.messages.create(**ask(text, stream=True))]
    return [kind for at, kind in enumerate(kinds) if kind not in kinds[:at] and kind != "ping"]


@check
def stream_helper(text):
    with client.messages.stream(**ask(text)) as events:
        pieces = list(events.text_stream)
        final = events.get_final_message()
    return {"pieces": pieces, "text": final.content[0].text, "output_tokens": final.usage.output_tokens}


@check
def tools(text):
    body = ask(text, tools=[WEATHER])
    while True:
        with client.messages.stream(**body) as events:
            message = events.get_final_message()
        if message.stop_reason != "tool_use":
            return message.content[0].text
        calls = [block for block in message.content if block.type == "tool_use"]
        results = [{"type": "tool_result", "tool_use_id": call.id, "content": weather_of(call.input["city"])} for call in calls]
        body["messages"] += [{"role": "assistant", "content": message.content}, {"role": "user", "content": results}]


@beta_tool
def get_weather(city: str) -> str:
    """The weather of a city

    Args:
        city: Its name
    """
    return weather_of(city)


@check
def tool_runner(text):
    return client.beta.messages.tool_runner(**ask(text, tools=[get_weather])).until_done().content[0].text


@check
def tool_runner_streamed(text):
    kinds = []
    for events in client.beta.messages.tool_runner(**ask(text, tools=[get_weather], stream=True)):
        kinds += [event.type for event in events]
        final = events.get_final_message()
    return [final.content[0].text, kinds.count("message_stop")]


@check
def thinking(text):
    """A thought and its signature, taken along to the next turn."""
    body = ask(text, tools=[WEATHER], thinking={"type": "enabled", "budget_tokens": 1024})
    with client.messages.stream(**body) as events:
        thoughts = "".join(event.thinking for event in events if event.type == "thinking")
        first = events.get_final_message()
    call = first.content[-1]
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}]
    body["messages"] += [{"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    second = client.messages.create(**body)
    return {"thoughts": thoughts, "first": [block.type for block in first.content], "second": [block.type for block in second.content], "kept": first.content[0].to_dict()}


@check
def parse(text):
    return client.messages.parse(**ask(text, output_format=Person)).parsed_output.model_dump()


@check
def parse_streamed(text):
    with client.messages.stream(**ask(text, output_format=Person)) as events:
        return events.get_final_message().parsed_output.model_dump()


@check
def cache_control(text):
    hour = {"type": "ephemeral", "ttl": "1h"}
    system = [{"type": "text", "text": "Be brief.", "cache_control": hour}]
    message = client.messages.create(**ask([{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}], system=system))
    return message.usage.to_dict()


@check
def count_tokens(text):
    return client.messages.count_tokens(model=given.model, messages=ask(text)["messages"], tools=[WEATHER]).input_tokens


@check
def models():
    listed = [model.id for model in client.models.list(limit=3)]
    one = client.models.retrieve(given.model)
    return {"listed": listed, "one": [one.id, one.type]}


@check
def documents(text):
    content = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": given.png}},
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": given.pdf}},
        {
            "type": "document",
            "title": "Grass",
            "source": {"type": "text", "media_type": "text/plain", "data": "Grass is green."},
            "citations": {"enabled": True},
        },
        {"type": "text", "text": text},
    ]
    whole = client.messages.create(**ask(content))
    with client.messages.stream(**ask(content)) as events:
        cited = [event.citation.cited_text for event in events if event.type == "citation"]
        final = events.get_final_message()
    told = [[one.to_dict() for one in message.content[0].citations] for message in (whole, final)]
    return {"text": [whole.content[0].text, final.content[0].text], "cited": told, "streamed": cited}


@check
async def asynchronous(text):
    async with AsyncAnthropic(base_url=given.url, auth_token=given.key, max_retries=0) as client:
        whole = client.messages.create(**ask(text))
        async with client.messages.stream(**ask(text)) as events:
            pieces = [piece async for piece in events.text_stream]
        return [(await whole).content[0].text, "".join(pieces)]


@check
def errors():
    def told(name):
        error = raised(lambda: client.messages.create(**ask(given.errors[name])))
        return [type(error).__name__, error.status_code, error.body["error"]["type"], error.message, error.request_id is not None]

    return {name: told(name) for name in given.errors}


@check
def bad_key():
    return type(raised(lambda: client.with_options(api_key="wrong").messages.create(**ask("Hello.")))).__name__


@check
def bad_parameter():
    error = raised(lambda: client.messages.create(**{**ask("Hello."), "max_tokens": 0}))
    return [type(error).__name__, error.message]


@check
def error_in_stream(text):
    pieces = []

    def read():
        with client.messages.stream(**ask(text)) as events:
            for piece in events.text_stream:
                pieces.append(piece)

    error = raised(read)
    return {"error": isinstance(error, anthropic.APIStatusError), "message": str(error), "pieces": "".join(pieces)}


@check
def retries(text):
    return client.with_options(max_retries=1).messages.create(**ask(text)).content[0].text


@check
def abort(text):
    with client.messages.stream(**ask(text)) as events:
        return next(events.text_stream)


@check
async def abort_asynchronous(text):
    async with AsyncAnthropic(base_url=given.url, api_key=given.key, max_retries=0) as client:

        async def read(note):
            async with client.messages.stream(**ask(text)) as events:
                async for _ in events.text_stream:
                    note()

        return await cancelled_midway(read)


@check
def timeout(text):
    return type(raised(lambda: client.with_options(timeout=2).messages.create(**ask(text)))).__name__

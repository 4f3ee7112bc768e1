"""openai: chat completions, whole and streamed, sync and async, tools, pydantic, images, errors, Azure. With 1.x, 2.x and 3.x."""

import json

import openai
from checks import cancelled_midway, check, given, raised, weather_of
from openai import AsyncOpenAI, AzureOpenAI, OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=f"{given.url}/v1", api_key=given.key, max_retries=0)


class Person(BaseModel):
    name: str
    age: int


class GetWeather(BaseModel):
    """The weather of a city"""

    city: str


def ask(text, **more):
    return {"model": given.model, "messages": [{"role": "user", "content": text}], **more}


@check
def version():
    return openai.__version__


@check
def create(text):
    raw = client.chat.completions.with_raw_response.create(**ask(text, temperature=0.2, seed=1))
    answer = raw.parse()
    return {
        "answer": answer.choices[0].message.content,
        "finish": answer.choices[0].finish_reason,
        "model": answer.model,
        "usage": answer.usage.to_dict(),
        "ignored": raw.headers.get("x-ignored-params"),
        "request_id": answer._request_id,
    }


@check
def stream(text):
    pieces, finish, usage = [], None, None
    for chunk in client.chat.completions.create(**ask(text, stream=True, stream_options={"include_usage": True})):
        for choice in chunk.choices:
            pieces.append(choice.delta.content or "")
            finish = choice.finish_reason or finish
        usage = chunk.usage or usage
    return {"pieces": [piece for piece in pieces if piece], "finish": finish, "usage": usage.to_dict()}


@check
def stream_helper(text):
    """Its events, and the arguments of a call by a pydantic class."""
    kinds = []
    with client.chat.completions.stream(**ask(text, tools=[openai.pydantic_function_tool(GetWeather)])) as events:
        for event in events:
            if event.type not in kinds:
                kinds.append(event.type)
        final = events.get_final_completion().choices[0]
    call = final.message.tool_calls[0].function
    return {"kinds": kinds, "content": final.message.content, "finish": final.finish_reason, "call": call.name, "arguments": call.parsed_arguments.model_dump()}


def rounds(text, create):
    """Calls tools until the model is done."""
    tool = {"name": "get_weather", "description": "The weather of a city", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    body = ask(text, tools=[{"type": "function", "function": tool}])
    while True:
        message = create(body)
        if not message.tool_calls:
            return message.content
        body["messages"].append(message.to_dict())
        for call in message.tool_calls:
            city = json.loads(call.function.arguments)["city"]
            body["messages"].append({"role": "tool", "tool_call_id": call.id, "content": weather_of(city)})


@check
def tools(text):
    return rounds(text, lambda body: client.chat.completions.create(**body).choices[0].message)


@check
def tools_streamed(text):
    def create(body):
        with client.chat.completions.stream(**body) as events:
            events.until_done()
            return events.get_final_completion().choices[0].message

    return rounds(text, create)


@check
def parse(text):
    message = client.chat.completions.parse(**ask(text, response_format=Person)).choices[0].message
    return message.parsed.model_dump()


@check
def parse_streamed(text):
    partial = []
    with client.chat.completions.stream(**ask(text, response_format=Person)) as events:
        for event in events:
            if event.type == "content.delta":
                partial.append(event.parsed)
        return {"parsed": events.get_final_completion().choices[0].message.parsed.model_dump(), "grew": len(partial) > 1}


@check
def files(text):
    content = [
        {"type": "text", "text": text},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{given.png}"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{given.pdf}"}},
    ]
    return client.chat.completions.create(**ask(content)).choices[0].message.content


@check
async def asynchronous(text):
    async with AsyncOpenAI(base_url=f"{given.url}/v1", api_key=given.key, max_retries=0) as client:
        whole = client.chat.completions.create(**ask(text))
        parts = await client.chat.completions.create(**ask(text, stream=True))
        pieces = [chunk.choices[0].delta.content or "" async for chunk in parts if chunk.choices]
        return [(await whole).choices[0].message.content, "".join(pieces)]


@check
def errors():
    def told(name):
        error = raised(lambda: client.chat.completions.create(**ask(given.errors[name])))
        return [type(error).__name__, error.status_code, error.message, error.request_id is not None]

    return {name: told(name) for name in given.errors}


@check
def bad_parameter():
    error = raised(lambda: client.chat.completions.create(**ask("Hello.", n=99)))
    return [type(error).__name__, error.param, error.type]


@check
def bad_key():
    error = raised(lambda: client.with_options(api_key="wrong").chat.completions.create(**ask("Hello.")))
    return [type(error).__name__, error.code]


@check
def error_in_stream(text):
    pieces = []

    def read():
        for chunk in client.chat.completions.create(**ask(text, stream=True)):
            pieces.append(chunk.choices[0].delta.content or "")

    error = raised(read)
    return {"error": type(error).__name__, "message": str(error), "pieces": "".join(pieces)}


@check
def retries(text):
    """The client asks again by itself where it is told that it may."""
    return client.with_options(max_retries=1).chat.completions.create(**ask(text)).choices[0].message.content


@check
def abort(text):
    with client.chat.completions.create(**ask(text, stream=True)) as chunks:
        for chunk in chunks:
            if chunk.choices[0].delta.content:
                return chunk.choices[0].delta.content


@check
async def abort_asynchronous(text):
    async with AsyncOpenAI(base_url=f"{given.url}/v1", api_key=given.key, max_retries=0) as client:

        async def read(note):
            async for chunk in await client.chat.completions.create(**ask(text, stream=True)):
                if chunk.choices[0].delta.content:
                    note()

        return await cancelled_midway(read)


@check
def timeout(text):
    return type(raised(lambda: client.with_options(timeout=2).chat.completions.create(**ask(text)))).__name__


@check
def models():
    listed = [model.id for model in client.models.list()]
    return {"listed": listed, "one": client.models.retrieve(given.model).to_dict()}


@check
def completions(text):
    answer = client.completions.create(model=given.model, prompt=text, stop="END", max_tokens=500)
    return [answer.choices[0].text, answer.choices[0].finish_reason]


@check
def azure(text):
    options = {"azure_endpoint": given.url, "api_key": given.key, "api_version": "2024-10-21", "max_retries": 0}
    whole = AzureOpenAI(azure_deployment=given.model, **options).chat.completions.create(**ask(text))
    parts = AzureOpenAI(**options).chat.completions.create(**ask(text, stream=True))
    pieces = [choice.delta.content or "" for chunk in parts for choice in chunk.choices]
    error = raised(lambda: AzureOpenAI(**{**options, "api_key": "wrong"}).chat.completions.create(**ask("Hello.")))
    return [whole.choices[0].message.content, "".join(pieces), type(error).__name__]


@check
async def azure_asynchronous(text):
    options = {"azure_endpoint": given.url, "azure_ad_token": given.key, "api_version": "2024-10-21", "max_retries": 0}
    async with openai.AsyncAzureOpenAI(**options) as client:
        return (await client.chat.completions.create(**ask(text))).choices[0].message.content

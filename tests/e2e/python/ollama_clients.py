"""Ollama's client, in its synchronous and asynchronous form, and LangChain's ChatOllama, which is built upon it."""

import base64
from importlib.metadata import version as version_of

from checks import cancelled_midway, check, given, raised, weather_of
from langchain.agents import create_agent
from langchain_core.tools import tool
from langchain_ollama import ChatOllama
from ollama import AsyncClient, Client, ResponseError
from pydantic import BaseModel

KEYED = {"headers": {"Authorization": f"Bearer {given.key}"}}
client = Client(host=given.url, **KEYED)
langchain = ChatOllama(model=given.model, base_url=given.url, client_kwargs=KEYED, validate_model_on_init=True)


class Person(BaseModel):
    name: str
    age: int


@tool("get_weather")
def weather_tool(city: str) -> str:
    """The weather of a city"""
    return weather_of(city)


def get_weather(city: str) -> str:
    """The weather of a city

    Args:
        city: its name
    """
    return weather_of(city)


def said(text, **more):
    return {"model": given.model, "messages": [{"role": "user", "content": text}], **more}


@check
def version():
    return [version_of("ollama"), version_of("langchain-ollama")]


@check
def chat(text):
    answer = client.chat(**said(text, options={"temperature": 0.5, "seed": 7}))
    return [answer.message.content, answer.done_reason, answer.eval_count, answer.model]


@check
def stream(text):
    parts = list(client.chat(**said(text, stream=True)))
    return ["".join(part.message.content for part in parts), len(parts), parts[-1].eval_count, parts[-1].total_duration > 0]


@check
def tools(text):
    """Functions as tools: the client makes their schemas."""
    body = said(text, tools=[get_weather])
    while True:
        message = client.chat(**body).message
        body["messages"].append(message)
        if not message.tool_calls:
            return message.content
        for call in message.tool_calls:
            result = get_weather(**call.function.arguments)
            body["messages"].append({"role": "tool", "tool_name": call.function.name, "content": result})


@check
def parse(text):
    answer = client.chat(**said(text, format=Person.model_json_schema()))
    return Person.model_validate_json(answer.message.content).model_dump()


@check
def think(text):
    answer = client.chat(**said(text, think=True))
    return [answer.message.thinking, answer.message.content]


@check
def images(text):
    content = {"role": "user", "content": text, "images": [base64.b64decode(given.png)]}
    return client.chat(model=given.model, messages=[content]).message.content


@check
def generate(text):
    return [client.generate(model=given.model, prompt=text, system="Be brief.").response, "".join(part.response for part in client.generate(model=given.model, prompt=text, stream=True))]


@check
async def asynchronous(text):
    parts = [part.message.content async for part in await AsyncClient(host=given.url, **KEYED).chat(**said(text, stream=True))]
    return "".join(parts)


@check
async def abort(text):
    async def read(begun):
        async for _ in await AsyncClient(host=given.url, **KEYED).chat(**said(text, stream=True)):
            begun()

    return await cancelled_midway(read)


@check
def errors(text):
    whole = raised(lambda: client.chat(**said(text)))
    stranger = raised(lambda: Client(host=given.url).list())
    pulled = raised(lambda: client.pull("llama3"))
    assert all(isinstance(one, ResponseError) for one in (whole, stranger, pulled))
    return [[one.status_code, one.error] for one in (whole, stranger, pulled)]


@check
def error_in_stream(text):
    return raised(lambda: list(client.chat(**said(text, stream=True)))).error


@check
def models():
    listed = client.list().models
    shown = client.show(given.model)
    return [[one.model for one in listed], shown.capabilities, shown.modelinfo["general.architecture"], client.ps().models]


@check
def langchain_invoke(text):
    answer = langchain.invoke(text)
    return [answer.text, answer.usage_metadata["output_tokens"]]


@check
def langchain_stream(text):
    whole = None
    for chunk in langchain.stream(text):
        whole = chunk if whole is None else whole + chunk
    return [whole.text, whole.response_metadata["done_reason"]]


@check
def langchain_agent(text):
    graph = create_agent(langchain, [weather_tool], system_prompt="Be brief.")
    return graph.invoke({"messages": [("user", text)]})["messages"][-1].text


@check
def langchain_parse(text):
    return langchain.with_structured_output(Person).invoke(text).model_dump()


@check
def langchain_reasoning(text):
    answer = langchain.model_copy(update={"reasoning": True}).invoke(text)
    return [answer.additional_kwargs["reasoning_content"], answer.text]

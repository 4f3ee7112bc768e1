"""pydantic-ai: agents with tools, output types and streams, over chat completions, responses and messages."""

import pydantic_ai
from checks import check, given, raised, weather_of
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

openai = OpenAIProvider(base_url=f"{given.url}/v1", api_key=given.key)
anthropic = AnthropicProvider(base_url=given.url, api_key=given.key)
MODELS = {
    "chat": OpenAIChatModel(given.model, provider=openai),
    "responses": OpenAIResponsesModel(given.model, provider=openai),
    "messages": AnthropicModel(given.model, provider=anthropic),
}


class Person(BaseModel):
    name: str
    age: int


def weather_agent(model):
    agent = Agent(model, instructions="Be brief.")

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather of a city"""
        return weather_of(city)

    return agent


@check
def version():
    return pydantic_ai.__version__


@check
def chat(text):
    result = weather_agent(MODELS["chat"]).run_sync(text)
    return [result.output, result.usage().requests if callable(result.usage) else result.usage.requests]


@check
def responses(text):
    return weather_agent(MODELS["responses"]).run_sync(text).output


@check
def messages(text):
    return weather_agent(MODELS["messages"]).run_sync(text).output


@check
async def stream(text):
    told = {}
    for name, model in MODELS.items():
        async with Agent(model).run_stream(text) as result:
            told[name] = [piece async for piece in result.stream_text(delta=True, debounce_by=None)]
    return told


@check
async def second_turn(text):
    agent = Agent(MODELS["chat"])
    first = await agent.run(text)
    second = await agent.run("And now?", message_history=first.all_messages())
    return [first.output, second.output]


@check
def output_tool(text):
    """Its way by default: a tool that the model must call."""
    return Agent(MODELS["chat"], output_type=Person).run_sync(text).output.model_dump()


@check
def output_schema(text):
    return Agent(MODELS["chat"], output_type=NativeOutput(Person)).run_sync(text).output.model_dump()


@check
def errors(text):
    told = {}
    for name, model in MODELS.items():
        error = raised(lambda: Agent(model).run_sync(text))
        told[name] = [isinstance(error, ModelHTTPError), error.status_code]
    return told

"""openai-agents: runs with tools, handoffs, output types, streams and sessions, over responses and chat completions."""

import asyncio

import agents
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, SQLiteSession, function_tool
from checks import check, given, weather_of
from openai import AsyncOpenAI
from pydantic import BaseModel

agents.set_tracing_disabled(True)
client = AsyncOpenAI(base_url=f"{given.url}/v1", api_key=given.key, max_retries=0)
MODELS = {
    "responses": OpenAIResponsesModel(given.model, client),
    "chat": OpenAIChatCompletionsModel(given.model, client),
}


class Person(BaseModel):
    name: str
    age: int


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city"""
    return weather_of(city)


def weather_agent(model, **more):
    return Agent(name="weather", instructions="Be brief.", model=MODELS[model], tools=[get_weather], **more)


@check
def version():
    return agents.version.__version__


@check
async def responses(text):
    return (await Runner.run(weather_agent("responses"), text)).final_output


@check
async def chat(text):
    return (await Runner.run(weather_agent("chat"), text)).final_output


@check
async def stream(text):
    result = Runner.run_streamed(weather_agent("responses"), text)
    kinds = [event.name for event in [event async for event in result.stream_events()] if event.type == "run_item_stream_event"]
    return [result.final_output, kinds]


@check
async def output_type(text):
    told = []
    for model in MODELS.values():
        agent = Agent(name="reader", model=model, output_type=Person)
        told.append((await Runner.run(agent, text)).final_output.model_dump())
    return told


@check
async def handoff(text):
    other = Agent(name="poet", instructions="You are a poet.", model=MODELS["responses"])
    result = await Runner.run(Agent(name="clerk", instructions="You are a clerk.", model=MODELS["responses"], handoffs=[other]), text)
    return [result.final_output, result.last_agent.name]


@check
async def session(text):
    """Its own memory of a conversation: a second turn goes on."""
    memory = SQLiteSession("one")
    agent = Agent(name="plain", model=MODELS["responses"])
    first = await Runner.run(agent, text, session=memory)
    second = await Runner.run(agent, "And now?", session=memory)
    return [first.final_output, second.final_output]


@check
async def chained(text):
    """The proxy's memory of a conversation: previous_response_id."""
    agent = Agent(name="plain", model=MODELS["responses"], model_settings=ModelSettings(store=True))
    first = await Runner.run(agent, text)
    second = await Runner.run(agent, "And now?", previous_response_id=first.last_response_id)
    return [first.final_output, second.final_output]


@check
async def errors(text):
    told = [Runner.run(Agent(name="plain", model=model), text) for model in MODELS.values()]
    return [type(error).__name__ for error in await asyncio.gather(*told, return_exceptions=True)]

"""smolagents: an agent that calls tools, and one that writes code."""

import smolagents
from checks import check, given, weather_of
from smolagents import CodeAgent, LogLevel, OpenAIModel, ToolCallingAgent, tool

model = OpenAIModel(model_id=given.model, api_base=f"{given.url}/v1", api_key=given.key, client_kwargs={"max_retries": 0})


@tool
def get_weather(city: str) -> str:
    """The weather of a city

    Args:
        city: Its name
    """
    return weather_of(city)


@check
def version():
    return smolagents.__version__


@check
def tool_calling(text):
    return ToolCallingAgent(tools=[get_weather], model=model, verbosity_level=LogLevel.OFF).run(text)


@check
def tool_calling_streamed(text):
    agent = ToolCallingAgent(tools=[get_weather], model=model, verbosity_level=LogLevel.OFF, stream_outputs=True)
    steps = list(agent.run(text, stream=True))
    return [steps[-1].output, "ChatMessageStreamDelta" in {type(step).__name__ for step in steps}]


@check
def code(text):
    return CodeAgent(tools=[get_weather], model=model, verbosity_level=LogLevel.OFF).run(text)

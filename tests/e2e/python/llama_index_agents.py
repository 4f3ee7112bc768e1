"""llama-index: its OpenAI, OpenAI-like and Anthropic classes, and agents that call tools."""

from importlib.metadata import version as version_of

from checks import check, given, raised, weather_of
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

LIKE = {"model": given.model, "api_base": f"{given.url}/v1", "api_key": given.key, "max_retries": 0}
chat = OpenAILike(**LIKE, is_chat_model=True, is_function_calling_model=True, context_window=200000)


class Person(BaseModel):
    name: str
    age: int


def get_weather(city: str) -> str:
    """The weather of a city"""
    return weather_of(city)


@check
def version():
    return version_of("llama-index-core")


@check
def invoke(text):
    return chat.chat([ChatMessage(role="user", content=text)]).message.content


@check
def stream(text):
    return "".join(piece.delta for piece in chat.stream_chat([ChatMessage(role="user", content=text)]))


@check
async def agent(text):
    agent = FunctionAgent(tools=[FunctionTool.from_defaults(get_weather)], llm=chat, system_prompt="Be brief.")
    return str(await agent.run(text))


@check
def parse(text):
    template = ChatPromptTemplate([ChatMessage(role="user", content="{question}")])
    return chat.structured_predict(Person, template, question=text).model_dump()


@check
def errors(text):
    return type(raised(lambda: chat.chat([ChatMessage(role="user", content=text)]))).__name__

"""LangChain's chat models for OpenAI and Anthropic, and agents of LangChain and LangGraph that call tools."""

import langchain
from checks import check, given, raised, weather_of
from langchain.agents import create_agent
from langchain_anthropic import ChatAnthropic
from langchain_core.tools import tool
from langchain_openai import AzureChatOpenAI, ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel

OPENAI = {"model": given.model, "base_url": f"{given.url}/v1", "api_key": given.key, "max_retries": 0}
chat = ChatOpenAI(**OPENAI, stream_usage=True)
responses = ChatOpenAI(**OPENAI, use_responses_api=True)
claude = ChatAnthropic(model=given.model, base_url=given.url, api_key=given.key, max_retries=0)
azure = AzureChatOpenAI(azure_deployment=given.model, azure_endpoint=given.url, api_key=given.key, api_version="2024-10-21", max_retries=0)


class Person(BaseModel):
    name: str
    age: int


@tool
def get_weather(city: str) -> str:
    """The weather of a city"""
    return weather_of(city)


@check
def version():
    return langchain.__version__


@check
def invoke(text):
    return [model.invoke(text).text for model in (chat, responses, claude, azure)]


@check
def stream(text):
    told = []
    for model in (chat, responses, claude):
        whole = None
        for chunk in model.stream(text):
            whole = chunk if whole is None else whole + chunk
        told.append([whole.text, whole.usage_metadata["output_tokens"]])
    return told


@check
def agent(text):
    """create_agent, which is a graph of LangGraph's."""
    graph = create_agent(chat, [get_weather], system_prompt="Be brief.")
    return graph.invoke({"messages": [("user", text)]})["messages"][-1].text


@check
def agent_anthropic(text):
    kinds = set()
    for kind, value in create_agent(claude, [get_weather]).stream({"messages": [("user", text)]}, stream_mode=["messages", "values"]):
        kinds.add(kind)
        if kind == "values":
            last = value["messages"][-1]
    return [last.text, sorted(kinds)]


@check
def agent_responses(text):
    return create_agent(responses, [get_weather]).invoke({"messages": [("user", text)]})["messages"][-1].text


@check
def graph(text):
    """A graph of one's own with a memory: a second turn goes on."""
    model = chat.bind_tools([get_weather])
    builder = StateGraph(MessagesState)
    builder.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
    builder.add_node("tools", ToolNode([get_weather]))
    builder.add_edge(START, "model")
    builder.add_conditional_edges("model", tools_condition)
    builder.add_edge("tools", "model")
    graph = builder.compile(checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "one"}}
    first = graph.invoke({"messages": [("user", text)]}, config)["messages"]
    second = graph.invoke({"messages": [("user", "And now?")]}, config)["messages"]
    return [first[-1].text, second[-1].text, len(second)]


@check
def parse(text):
    return [model.with_structured_output(Person, method="json_schema").invoke(text).model_dump() for model in (chat, claude)]


@check
async def asynchronous(text):
    return "".join([chunk.text async for chunk in claude.astream(text)])


@check
def errors(text):
    return [type(raised(lambda: model.invoke(text))).__name__ for model in (chat, claude)]

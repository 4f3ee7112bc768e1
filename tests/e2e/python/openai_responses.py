"""openai: the Responses API, whole and streamed, with tools, pydantic and stored responses. With 1.x, 2.x and 3.x."""

import json

import openai
from checks import check, given, raised, weather_of
from openai import AsyncOpenAI, AzureOpenAI, OpenAI
from pydantic import BaseModel

client = OpenAI(base_url=f"{given.url}/v1", api_key=given.key, max_retries=0)
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city",
    "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
}


class Person(BaseModel):
    name: str
    age: int


@check
def create(text):
    answer = client.responses.create(model=given.model, instructions="Be brief.", input=text)
    got = client.responses.retrieve(answer.id)
    items = [item.content[0].text for item in client.responses.input_items.list(answer.id)]
    client.responses.delete(answer.id)
    gone = raised(lambda: client.responses.retrieve(answer.id))
    return {
        "text": answer.output_text,
        "status": answer.status,
        "usage": answer.usage.to_dict(),
        "got": got.output_text,
        "same_input": items == [text],
        "gone": type(gone).__name__,
    }


@check
def stream(text):
    kinds = [event.type for event in client.responses.create(model=given.model, input=text, stream=True)]
    return [kind for at, kind in enumerate(kinds) if kind not in kinds[:at]]


@check
def stream_helper(text):
    with client.responses.stream(model=given.model, input=text) as events:
        pieces = [event.delta for event in events if event.type == "response.output_text.delta"]
        final = events.get_final_response()
    return {"pieces": pieces, "text": final.output_text, "output_tokens": final.usage.output_tokens}


@check
def parse(text):
    return client.responses.parse(model=given.model, input=text, text_format=Person).output_parsed.model_dump()


@check
def parse_streamed(text):
    with client.responses.stream(model=given.model, input=text, text_format=Person) as events:
        return events.until_done().get_final_response().output_parsed.model_dump()


def rounds(text, chained):
    items = [{"role": "user", "content": text}]
    answer = client.responses.create(model=given.model, tools=[WEATHER], input=items, store=chained)
    while calls := [item for item in answer.output if item.type == "function_call"]:
        results = [{"type": "function_call_output", "call_id": call.call_id, "output": weather_of(json.loads(call.arguments)["city"])} for call in calls]
        items += [item.to_dict() for item in answer.output] + results
        more = {"previous_response_id": answer.id, "input": results} if chained else {"input": items}
        answer = client.responses.create(model=given.model, tools=[WEATHER], store=chained, **more)
    return answer.output_text


@check
def tools(text):
    return rounds(text, chained=False)


@check
def tools_chained(text):
    return rounds(text, chained=True)


@check
def previous_response_id(text):
    first = client.responses.create(model=given.model, input=text)
    second = client.responses.create(model=given.model, input="And then?", previous_response_id=first.id)
    return [first.output_text, second.output_text, second.previous_response_id == first.id]


@check
def pydantic_tool(text):
    class GetWeather(BaseModel):
        city: str

    tool = openai.pydantic_function_tool(GetWeather)["function"]
    answer = client.responses.parse(model=given.model, input=text, tools=[{"type": "function", **tool}])
    return [answer.output[0].name, answer.output[0].parsed_arguments]


@check
def files(text):
    content = [
        {"type": "input_image", "detail": "auto", "image_url": f"data:image/png;base64,{given.png}"},
        {"type": "input_file", "filename": "a.pdf", "file_data": f"data:application/pdf;base64,{given.pdf}"},
        {"type": "input_text", "text": text},
    ]
    answer = client.responses.create(model=given.model, max_output_tokens=2, input=[{"role": "user", "content": content}])
    return [answer.status, answer.incomplete_details.reason, answer.output_text]


@check
def reasoning(text):
    answer = client.responses.create(model=given.model, input=text, reasoning={"effort": "low", "summary": "auto"}, include=["reasoning.encrypted_content"])
    return [answer.output[0].summary[0].text, answer.output_text, bool(answer.output[0].encrypted_content)]


@check
async def asynchronous(text):
    async with AsyncOpenAI(base_url=f"{given.url}/v1", api_key=given.key, max_retries=0) as client:
        async with client.responses.stream(model=given.model, input=text) as events:
            return (await events.get_final_response()).output_text


@check
def errors(text):
    refused = raised(lambda: client.responses.create(model=given.model, input=text))
    unknown = raised(lambda: client.responses.create(model=given.model, input="Hello.", previous_response_id="resp_nobody"))
    return [type(refused).__name__, refused.status_code, refused.message, type(unknown).__name__]


@check
def error_in_stream(text):
    events = list(client.responses.create(model=given.model, input=text, stream=True))
    return [events[-1].type, events[-1].response.status, events[-1].response.error.message]


@check
def abort(text):
    with client.responses.create(model=given.model, input=text, stream=True) as events:
        return next(event.delta for event in events if event.type == "response.output_text.delta")


@check
def azure(text):
    azure = AzureOpenAI(azure_endpoint=given.url, api_key=given.key, api_version="2025-04-01-preview", max_retries=0)
    return azure.responses.create(model=given.model, input=text).output_text

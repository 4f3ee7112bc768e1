"""instructor: pydantic models out of OpenAI's and Anthropic's clients, whole, partial, many, and asked again when invalid."""

from importlib.metadata import version as version_of

import instructor
from anthropic import Anthropic
from checks import check, given, raised
from openai import OpenAI
from pydantic import BaseModel, field_validator

openai = OpenAI(base_url=f"{given.url}/v1", api_key=given.key, max_retries=0)
anthropic = Anthropic(base_url=given.url, api_key=given.key, max_retries=0)
tools = instructor.from_openai(openai)


class Person(BaseModel):
    name: str
    age: int


class Adult(Person):
    @field_validator("age")
    @classmethod
    def is_adult(cls, age):
        if age < 18:
            raise ValueError("too young")
        return age


def ask(text, model=Person, **more):
    return {"model": given.model, "response_model": model, "messages": [{"role": "user", "content": text}], "max_retries": 1, **more}


@check
def version():
    return version_of("instructor")


@check
def by_tools(text):
    return tools.chat.completions.create(**ask(text)).model_dump()


@check
def by_schema(text):
    return instructor.from_openai(openai, mode=instructor.Mode.JSON_SCHEMA).chat.completions.create(**ask(text)).model_dump()


@check
def by_responses(text):
    client = instructor.from_openai(openai, mode=instructor.Mode.RESPONSES_TOOLS)
    return client.responses.create(model=given.model, input=text, response_model=Person, max_retries=1).model_dump()


@check
def by_anthropic(text):
    return instructor.from_anthropic(anthropic).messages.create(**ask(text, max_tokens=2000)).model_dump()


@check
def partial(text):
    grown = [person.model_dump() for person in tools.chat.completions.create_partial(**ask(text))]
    return [grown[-1], len(grown) > 1]


@check
def asked_again(text):
    """What is not valid goes back to the model, which calls once more."""
    return tools.chat.completions.create(**ask(text, Adult, max_retries=2)).model_dump()


@check
def errors(text):
    return type(raised(lambda: tools.chat.completions.create(**ask(text)))).__name__

"""DSPy: a predictor, a thinker, an agent with tools and a stream."""

import dspy
from checks import check, given, raised, weather_of

OPTIONS = {"cache": False, "num_retries": 0, "max_tokens": 2000}
lm = dspy.LM(f"openai/{given.model}", api_base=f"{given.url}/v1", api_key=given.key, **OPTIONS)
claude = dspy.LM(f"anthropic/{given.model}", api_base=given.url, api_key=given.key, **OPTIONS)
dspy.configure(lm=lm)


def get_weather(city: str) -> str:
    """The weather of a city"""
    return f"{weather_of(city)} {given.observed}"


@check
def version():
    return dspy.__version__


@check
def call(text):
    return [model(text)[0] for model in (lm, claude)]


@check
def predict(text):
    return dspy.Predict("question -> answer")(question=text).answer


@check
def chain_of_thought(text):
    found = dspy.ChainOfThought("question -> answer: int")(question=text)
    return [found.reasoning, found.answer]


@check
def react(text):
    return dspy.ReAct("question -> answer", tools=[get_weather])(question=text).answer


@check
def errors(text):
    return type(raised(lambda: lm(text))).__name__

//! async-openai: chat completions and responses, whole and streamed, rounds of tools, JSON by a schema, errors, the Azure paths.
//! Prints a line of JSON for each check; standard input tells where the proxy is and what the user says in each.

use async_openai::config::{AzureConfig, Config, OpenAIConfig};
use async_openai::error::OpenAIError;
use async_openai::types::chat::{ChatCompletionMessageToolCalls, CreateChatCompletionRequest};
use async_openai::types::responses::{CreateResponse, OutputItem, ResponseStreamEvent};
use async_openai::Client;
use futures::StreamExt;
use serde_json::{json, Value};

type Told = Result<Value, Box<dyn std::error::Error>>;

struct Program {
    given: Value,
    client: Client<OpenAIConfig>,
}

fn tell(check: &str, told: Told) {
    let mut line = json!({ "check": check });
    match told {
        Ok(value) => line["value"] = value,
        Err(error) => line["error"] = json!(format!("{error:?}")),
    }
    println!("{line}");
}

/// The schema of the tool's arguments.
fn weather() -> Value {
    json!({ "type": "object", "properties": { "city": { "type": "string" } }, "required": ["city"] })
}

fn weather_of(arguments: &str) -> Result<String, serde_json::Error> {
    let arguments: Value = serde_json::from_str(arguments)?;
    Ok(format!("{}: sunny", arguments["city"].as_str().unwrap_or_default()))
}

fn person() -> Value {
    json!({
        "type": "object",
        "properties": { "name": { "type": "string" }, "age": { "type": "integer" } },
        "required": ["name", "age"],
        "additionalProperties": false,
    })
}

fn refusal(error: OpenAIError) -> Told {
    match error {
        OpenAIError::ApiError(told) => Ok(json!([told.status_code.as_u16(), told.api_error.r#type, told.api_error.message])),
        other => Err(other.into()),
    }
}

impl Program {
    fn word(&self, name: &str) -> &str {
        self.given[name].as_str().unwrap_or_default()
    }

    fn config(&self, key: &str) -> OpenAIConfig {
        OpenAIConfig::new().with_api_base(format!("{}/v1", self.word("url"))).with_api_key(key)
    }

    fn text(&self, check: &str) -> &str {
        self.given["texts"][check].as_str().unwrap_or("Hello.")
    }

    /// A request whose user says the text of a check.
    fn ask(&self, check: &str) -> Result<CreateChatCompletionRequest, serde_json::Error> {
        serde_json::from_value(json!({ "model": self.word("model"), "messages": [{ "role": "user", "content": self.text(check) }] }))
    }

    async fn chat(&self) -> Told {
        let answer = self.client.chat().create(self.ask("chat")?).await?;
        let usage = answer.usage.and_then(|usage| usage.prompt_tokens_details);
        let choice = &answer.choices[0];
        Ok(json!([choice.message.content, choice.finish_reason, usage.and_then(|usage| usage.cached_tokens)]))
    }

    async fn stream(&self) -> Told {
        let mut request = self.ask("stream")?;
        request.stream_options = serde_json::from_value(json!({ "include_usage": true }))?;
        let mut chunks = self.client.chat().create_stream(request).await?;
        let (mut text, mut pieces, mut tokens) = (String::new(), 0, 0);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            for piece in chunk.choices.iter().filter_map(|choice| choice.delta.content.as_ref()).filter(|piece| !piece.is_empty()) {
                text += piece;
                pieces += 1;
            }
            tokens = chunk.usage.map_or(tokens, |usage| usage.completion_tokens);
        }
        Ok(json!([text, pieces, tokens]))
    }

    async fn tools(&self) -> Told {
        let mut request = self.ask("tools")?;
        request.tools = serde_json::from_value(json!([{ "type": "function", "function": {
            "name": "get_weather", "description": "The weather of a city", "parameters": weather(),
        }}]))?;
        loop {
            let answer = self.client.chat().create(request.clone()).await?;
            let message = &answer.choices[0].message;
            let Some(calls) = &message.tool_calls else {
                return Ok(json!(message.content));
            };
            request.messages.push(serde_json::from_value(json!({ "role": "assistant", "tool_calls": calls }))?);
            for call in calls {
                let ChatCompletionMessageToolCalls::Function(call) = call else {
                    return Err("a call of another kind".into());
                };
                let content = weather_of(&call.function.arguments)?;
                request.messages.push(serde_json::from_value(json!({ "role": "tool", "tool_call_id": call.id, "content": content }))?);
            }
        }
    }

    async fn parse(&self) -> Told {
        let mut request = self.ask("parse")?;
        request.response_format = serde_json::from_value(json!({
            "type": "json_schema", "json_schema": { "name": "person", "strict": true, "schema": person() },
        }))?;
        let answer = self.client.chat().create(request).await?;
        Ok(serde_json::from_str(answer.choices[0].message.content.as_deref().unwrap_or_default())?)
    }

    fn respond(&self, check: &str) -> Result<CreateResponse, serde_json::Error> {
        serde_json::from_value(json!({ "model": self.word("model"), "input": self.text(check) }))
    }

    async fn responses(&self) -> Told {
        let first = self.client.responses().create(self.respond("responses")?).await?;
        let next = json!({ "model": self.word("model"), "input": "And now?", "previous_response_id": first.id });
        let mut events = self.client.responses().create_stream(serde_json::from_value(next)?).await?;
        let mut second = String::new();
        while let Some(event) = events.next().await {
            if let ResponseStreamEvent::ResponseOutputTextDelta(event) = event? {
                second += &event.delta;
            }
        }
        Ok(json!([first.output_text(), second]))
    }

    /// Sends only what is new: the proxy knows the rest by the response's id.
    async fn responses_tools(&self) -> Told {
        let mut request = self.respond("responses_tools")?;
        request.tools = serde_json::from_value(json!([{
            "type": "function", "name": "get_weather", "description": "The weather of a city", "parameters": weather(), "strict": false,
        }]))?;
        loop {
            let answer = self.client.responses().create(request.clone()).await?;
            let mut results = Vec::new();
            for item in &answer.output {
                if let OutputItem::FunctionCall(call) = item {
                    let output = weather_of(&call.arguments)?;
                    results.push(json!({ "type": "function_call_output", "call_id": call.call_id, "output": output }));
                }
            }
            if results.is_empty() {
                return Ok(json!(answer.output_text()));
            }
            request.input = serde_json::from_value(json!(results))?;
            request.previous_response_id = Some(answer.id);
        }
    }

    async fn responses_parse(&self) -> Told {
        let mut request = self.respond("responses_parse")?;
        request.text = serde_json::from_value(json!({
            "format": { "type": "json_schema", "name": "person", "strict": true, "schema": person() },
        }))?;
        let answer = self.client.responses().create(request).await?;
        Ok(serde_json::from_str(&answer.output_text().unwrap_or_default())?)
    }

    async fn azure(&self) -> Told {
        let config = AzureConfig::new()
            .with_api_base(self.word("url"))
            .with_api_key(self.word("key"))
            .with_api_version("2024-10-21")
            .with_deployment_id(self.word("model"));
        let answer = Client::with_config(config).chat().create(self.ask("azure")?).await?;
        Ok(json!(answer.choices[0].message.content))
    }

    async fn refused<C: Config>(&self, client: &Client<C>, request: CreateChatCompletionRequest) -> Told {
        match client.chat().create(request).await {
            Ok(_) => Err("it was answered".into()),
            Err(error) => refusal(error),
        }
    }

    async fn broken(&self) -> Told {
        let mut chunks = self.client.chat().create_stream(self.ask("broken")?).await?;
        while let Some(chunk) = chunks.next().await {
            if let Err(error) = chunk {
                return Ok(json!(error.to_string()));
            }
        }
        Err("the stream ended well".into())
    }

    /// Leaves in the middle of a stream.
    async fn abort(&self) -> Told {
        let mut chunks = self.client.chat().create_stream(self.ask("abort")?).await?;
        while let Some(chunk) = chunks.next().await {
            if chunk?.choices[0].delta.content.as_ref().is_some_and(|piece| !piece.is_empty()) {
                return Ok(json!(true));
            }
        }
        Err("the stream ended".into())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let given: Value = serde_json::from_reader(std::io::stdin()).expect("JSON on standard input");
    let mut program = Program { given, client: Client::new() };
    program.client = Client::with_config(program.config(program.word("key")));
    tell("chat", program.chat().await);
    tell("stream", program.stream().await);
    tell("tools", program.tools().await);
    tell("parse", program.parse().await);
    tell("responses", program.responses().await);
    tell("responses_tools", program.responses_tools().await);
    tell("responses_parse", program.responses_parse().await);
    tell("azure", program.azure().await);
    let request = |check: &str| program.ask(check).expect("a request");
    tell("refused", program.refused(&program.client, request("refused")).await);
    let bad = CreateChatCompletionRequest { temperature: Some(9.0), ..request("bad_field") };
    tell("bad_field", program.refused(&program.client, bad).await);
    tell("bad_key", program.refused(&Client::with_config(program.config("wrong")), request("bad_key")).await);
    tell("broken", program.broken().await);
    tell("abort", program.abort().await);
}

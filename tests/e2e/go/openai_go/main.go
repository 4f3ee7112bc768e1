// openai-go: chat completions and responses, whole and streamed, rounds of tools, JSON by a schema, errors, the Azure paths.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"claude-openai-e2e/checks"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/azure"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
)

var given = &checks.Given

func ask(text string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:    given.Model,
		Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(text)},
	}
}

func rounds(client openai.Client, text string) (any, error) {
	body := ask(text)
	body.Tools = []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{
		Name:        "get_weather",
		Description: openai.String("The weather of a city"),
		Parameters:  checks.Weather,
	})}
	for {
		stream := client.Chat.Completions.NewStreaming(context.Background(), body)
		whole := openai.ChatCompletionAccumulator{}
		for stream.Next() {
			whole.AddChunk(stream.Current())
		}
		if stream.Err() != nil {
			return nil, stream.Err()
		}
		message := whole.Choices[0].Message
		if len(message.ToolCalls) == 0 {
			return message.Content, nil
		}
		body.Messages = append(body.Messages, message.ToParam())
		for _, call := range message.ToolCalls {
			weather, err := checks.WeatherOf(call.Function.Arguments)
			if err != nil {
				return nil, err
			}
			body.Messages = append(body.Messages, openai.ToolMessage(weather, call.ID))
		}
	}
}

func respond(text string) responses.ResponseNewParams {
	return responses.ResponseNewParams{Model: given.Model, Input: responses.ResponseNewParamsInputUnion{OfString: openai.String(text)}}
}

// roundsOfResponses sends only what is new: the proxy knows the rest by the response's id.
func roundsOfResponses(client openai.Client, text string) (any, error) {
	body := respond(text)
	body.Tools = []responses.ToolUnionParam{{OfFunction: &responses.FunctionToolParam{
		Name: "get_weather", Description: openai.String("The weather of a city"), Parameters: checks.Weather, Strict: openai.Bool(false),
	}}}
	for {
		answer, err := client.Responses.New(context.Background(), body)
		if err != nil {
			return nil, err
		}
		results := responses.ResponseInputParam{}
		for _, item := range answer.Output {
			if item.Type != "function_call" {
				continue
			}
			call := item.AsFunctionCall()
			weather, err := checks.WeatherOf(call.Arguments)
			if err != nil {
				return nil, err
			}
			results = append(results, responses.ResponseInputItemUnionParam{OfFunctionCallOutput: &responses.ResponseInputItemFunctionCallOutputParam{
				CallID: openai.String(call.CallID),
				Output: responses.ResponseInputItemFunctionCallOutputOutputUnionParam{OfString: openai.String(weather)},
			}})
		}
		if len(results) == 0 {
			return answer.OutputText(), nil
		}
		body.PreviousResponseID = openai.String(answer.ID)
		body.Input = responses.ResponseNewParamsInputUnion{OfInputItemList: results}
	}
}

func told(err error) (any, error) {
	var failure *openai.Error
	if !errors.As(err, &failure) {
		return nil, fmt.Errorf("no API error: %w", err)
	}
	return []any{failure.StatusCode, failure.Type, failure.Message}, nil
}

func main() {
	ctx := context.Background()
	client := openai.NewClient(option.WithBaseURL(given.URL+"/v1"), option.WithAPIKey(given.Key), option.WithMaxRetries(0))

	checks.Check("chat", func(text string) (any, error) {
		answer, err := client.Chat.Completions.New(ctx, ask(text))
		if err != nil {
			return nil, err
		}
		return []any{answer.Choices[0].Message.Content, answer.Choices[0].FinishReason, answer.Usage.PromptTokensDetails.CachedTokens}, nil
	})
	checks.Check("stream", func(text string) (any, error) {
		body := ask(text)
		body.StreamOptions.IncludeUsage = openai.Bool(true)
		stream := client.Chat.Completions.NewStreaming(ctx, body)
		whole, pieces := openai.ChatCompletionAccumulator{}, 0
		for stream.Next() {
			chunk := stream.Current()
			whole.AddChunk(chunk)
			if len(chunk.Choices) > 0 && chunk.Choices[0].Delta.Content != "" {
				pieces++
			}
		}
		if stream.Err() != nil {
			return nil, stream.Err()
		}
		return []any{whole.Choices[0].Message.Content, pieces, whole.Usage.CompletionTokens}, nil
	})
	checks.Check("tools", func(text string) (any, error) { return rounds(client, text) })
	checks.Check("parse", func(text string) (any, error) {
		body := ask(text)
		body.ResponseFormat.OfJSONSchema = &openai.ResponseFormatJSONSchemaParam{
			JSONSchema: openai.ResponseFormatJSONSchemaJSONSchemaParam{Name: "person", Strict: openai.Bool(true), Schema: checks.Person},
		}
		answer, err := client.Chat.Completions.New(ctx, body)
		if err != nil {
			return nil, err
		}
		return json.RawMessage(answer.Choices[0].Message.Content), nil
	})
	checks.Check("responses", func(text string) (any, error) {
		body := respond(text)
		first, err := client.Responses.New(ctx, body)
		if err != nil {
			return nil, err
		}
		body.PreviousResponseID = openai.String(first.ID)
		body.Input = responses.ResponseNewParamsInputUnion{OfString: openai.String("And now?")}
		stream := client.Responses.NewStreaming(ctx, body)
		second := ""
		for stream.Next() {
			if event := stream.Current(); event.Type == "response.output_text.delta" {
				second += event.Delta
			}
		}
		return []any{first.OutputText(), second}, stream.Err()
	})
	checks.Check("responses_tools", func(text string) (any, error) { return roundsOfResponses(client, text) })
	checks.Check("responses_parse", func(text string) (any, error) {
		body := respond(text)
		body.Text.Format.OfJSONSchema = &responses.ResponseFormatTextJSONSchemaConfigParam{Name: "person", Strict: openai.Bool(true), Schema: checks.Person}
		answer, err := client.Responses.New(ctx, body)
		if err != nil {
			return nil, err
		}
		return json.RawMessage(answer.OutputText()), nil
	})
	checks.Check("azure", func(text string) (any, error) {
		client := openai.NewClient(azure.WithEndpoint(given.URL, "2024-10-21"), azure.WithUnsafeAllowHTTP(), azure.WithAPIKey(given.Key), option.WithMaxRetries(0))
		answer, err := client.Chat.Completions.New(ctx, ask(text))
		if err != nil {
			return nil, err
		}
		return answer.Choices[0].Message.Content, nil
	})
	checks.Check("refused", func(text string) (any, error) {
		_, err := client.Chat.Completions.New(ctx, ask(text))
		return told(err)
	})
	checks.Check("broken", func(text string) (any, error) {
		stream := client.Chat.Completions.NewStreaming(ctx, ask(text))
		for stream.Next() {
		}
		return fmt.Sprint(stream.Err()), nil
	})
	checks.Check("bad_field", func(text string) (any, error) {
		body := ask(text)
		body.Temperature = openai.Float(9)
		_, err := client.Chat.Completions.New(ctx, body)
		return told(err)
	})
	checks.Check("bad_key", func(string) (any, error) {
		_, err := client.Chat.Completions.New(ctx, ask("Hello."), option.WithAPIKey("wrong"))
		return told(err)
	})
	checks.Check("abort", func(text string) (any, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream := client.Chat.Completions.NewStreaming(ctx, ask(text))
		for stream.Next() {
			if chunk := stream.Current(); chunk.Choices[0].Delta.Content != "" {
				cancel()
			}
		}
		return errors.Is(stream.Err(), context.Canceled), nil
	})
}

// sashabaranov/go-openai: chat completions whole and streamed, rounds of tools, JSON by a schema, errors, the Azure configuration.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"claude-openai-e2e/checks"

	"github.com/sashabaranov/go-openai"
)

var given = &checks.Given

func ask(text string) openai.ChatCompletionRequest {
	return openai.ChatCompletionRequest{Model: given.Model, Messages: []openai.ChatCompletionMessage{{Role: "user", Content: text}}}
}

func newClient(key string) *openai.Client {
	config := openai.DefaultConfig(key)
	config.BaseURL = given.URL + "/v1"
	return openai.NewClientWithConfig(config)
}

func rounds(client *openai.Client, text string) (any, error) {
	body := ask(text)
	body.Tools = []openai.Tool{{Type: openai.ToolTypeFunction, Function: &openai.FunctionDefinition{
		Name: "get_weather", Description: "The weather of a city", Parameters: checks.Weather,
	}}}
	for {
		answer, err := client.CreateChatCompletion(context.Background(), body)
		if err != nil {
			return nil, err
		}
		message := answer.Choices[0].Message
		if len(message.ToolCalls) == 0 {
			return message.Content, nil
		}
		body.Messages = append(body.Messages, message)
		for _, call := range message.ToolCalls {
			weather, err := checks.WeatherOf(call.Function.Arguments)
			if err != nil {
				return nil, err
			}
			body.Messages = append(body.Messages, openai.ChatCompletionMessage{Role: "tool", ToolCallID: call.ID, Content: weather})
		}
	}
}

// read gives the text, the number of pieces and the error of a stream.
func read(stream *openai.ChatCompletionStream, err error) (string, int, *openai.Usage, error) {
	if err != nil {
		return "", 0, nil, err
	}
	defer stream.Close()
	text, pieces, usage := "", 0, (*openai.Usage)(nil)
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return text, pieces, usage, nil
		}
		if err != nil {
			return text, pieces, usage, err
		}
		if chunk.Usage != nil {
			usage = chunk.Usage
		}
		for _, choice := range chunk.Choices {
			if choice.Delta.Content != "" {
				text += choice.Delta.Content
				pieces++
			}
		}
	}
}

func told(err error) (any, error) {
	var failure *openai.APIError
	if !errors.As(err, &failure) {
		return nil, fmt.Errorf("no API error: %w", err)
	}
	return []any{failure.HTTPStatusCode, failure.Type, failure.Message}, nil
}

func main() {
	ctx := context.Background()
	client := newClient(given.Key)

	checks.Check("chat", func(text string) (any, error) {
		answer, err := client.CreateChatCompletion(ctx, ask(text))
		if err != nil {
			return nil, err
		}
		return []any{answer.Choices[0].Message.Content, answer.Choices[0].FinishReason, answer.Usage.PromptTokensDetails.CachedTokens}, nil
	})
	checks.Check("stream", func(text string) (any, error) {
		body := ask(text)
		body.StreamOptions = &openai.StreamOptions{IncludeUsage: true}
		whole, pieces, usage, err := read(client.CreateChatCompletionStream(ctx, body))
		if err != nil {
			return nil, err
		}
		return []any{whole, pieces, usage.CompletionTokens}, nil
	})
	checks.Check("tools", func(text string) (any, error) { return rounds(client, text) })
	checks.Check("parse", func(text string) (any, error) {
		schema, err := json.Marshal(checks.Person)
		if err != nil {
			return nil, err
		}
		body := ask(text)
		body.ResponseFormat = &openai.ChatCompletionResponseFormat{
			Type:       openai.ChatCompletionResponseFormatTypeJSONSchema,
			JSONSchema: &openai.ChatCompletionResponseFormatJSONSchema{Name: "person", Strict: true, Schema: json.RawMessage(schema)},
		}
		answer, err := client.CreateChatCompletion(ctx, body)
		if err != nil {
			return nil, err
		}
		return json.RawMessage(answer.Choices[0].Message.Content), nil
	})
	checks.Check("azure", func(text string) (any, error) {
		answer, err := openai.NewClientWithConfig(openai.DefaultAzureConfig(given.Key, given.URL)).CreateChatCompletion(ctx, ask(text))
		if err != nil {
			return nil, err
		}
		return answer.Choices[0].Message.Content, nil
	})
	checks.Check("refused", func(text string) (any, error) {
		_, err := client.CreateChatCompletion(ctx, ask(text))
		return told(err)
	})
	checks.Check("broken", func(text string) (any, error) {
		_, _, _, err := read(client.CreateChatCompletionStream(ctx, ask(text)))
		return fmt.Sprint(err), nil
	})
	checks.Check("bad_field", func(text string) (any, error) {
		body := ask(text)
		body.Temperature = 9
		_, err := client.CreateChatCompletion(ctx, body)
		return told(err)
	})
	checks.Check("bad_key", func(string) (any, error) {
		_, err := newClient("wrong").CreateChatCompletion(ctx, ask("Hello."))
		return told(err)
	})
	checks.Check("abort", func(text string) (any, error) {
		stream, err := client.CreateChatCompletionStream(ctx, ask(text))
		if err != nil {
			return nil, err
		}
		for {
			chunk, err := stream.Recv()
			if err != nil || chunk.Choices[0].Delta.Content != "" {
				stream.Close()
				return err == nil, err
			}
		}
	})
}

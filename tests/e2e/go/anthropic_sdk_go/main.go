// anthropic-sdk-go: messages whole and streamed, rounds of tools, its tool runner, JSON by a schema, counting, models, errors.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"claude-openai-e2e/checks"

	"github.com/anthropics/anthropic-sdk-go/v2"
	"github.com/anthropics/anthropic-sdk-go/v2/option"
	"github.com/anthropics/anthropic-sdk-go/v2/toolrunner"
)

var given = &checks.Given

func ask(text string) anthropic.MessageNewParams {
	return anthropic.MessageNewParams{
		Model:     anthropic.Model(given.Model),
		MaxTokens: 2000,
		Messages:  []anthropic.MessageParam{anthropic.NewUserMessage(anthropic.NewTextBlock(text))},
	}
}

func read(client anthropic.Client, body anthropic.MessageNewParams) (anthropic.Message, int, error) {
	stream := client.Messages.NewStreaming(context.Background(), body)
	message, pieces := anthropic.Message{}, 0
	for stream.Next() {
		event := stream.Current()
		if err := message.Accumulate(event); err != nil {
			return message, pieces, err
		}
		if event.Delta.Text != "" {
			pieces++
		}
	}
	return message, pieces, stream.Err()
}

func rounds(client anthropic.Client, text string) (any, error) {
	body := ask(text)
	body.Tools = []anthropic.ToolUnionParam{{OfTool: &anthropic.ToolParam{
		Name:        "get_weather",
		Description: anthropic.String("The weather of a city"),
		InputSchema: anthropic.ToolInputSchemaParam{Properties: checks.Weather["properties"], Required: []string{"city"}},
	}}}
	for {
		message, _, err := read(client, body)
		if err != nil {
			return nil, err
		}
		results := []anthropic.ContentBlockParamUnion{}
		for _, block := range message.Content {
			if block.Type != "tool_use" {
				continue
			}
			weather, err := checks.WeatherOf(string(block.Input))
			if err != nil {
				return nil, err
			}
			results = append(results, anthropic.NewToolResultBlock(block.ID, weather, false))
		}
		if len(results) == 0 {
			return message.Content[0].Text, nil
		}
		body.Messages = append(body.Messages, message.ToParam(), anthropic.NewUserMessage(results...))
	}
}

func told(err error) (any, error) {
	var failure *anthropic.Error
	if !errors.As(err, &failure) {
		return nil, fmt.Errorf("no API error: %w", err)
	}
	var body struct {
		Error struct{ Type, Message string }
	}
	if err := json.Unmarshal([]byte(failure.RawJSON()), &body); err != nil {
		return nil, err
	}
	return []any{failure.StatusCode, body.Error.Type, body.Error.Message}, nil
}

func main() {
	ctx := context.Background()
	client := anthropic.NewClient(option.WithBaseURL(given.URL), option.WithAPIKey(given.Key), option.WithMaxRetries(0))

	checks.Check("chat", func(text string) (any, error) {
		message, err := client.Messages.New(ctx, ask(text))
		if err != nil {
			return nil, err
		}
		return []any{message.Content[0].Text, message.StopReason, message.Usage.CacheReadInputTokens}, nil
	})
	checks.Check("stream", func(text string) (any, error) {
		message, pieces, err := read(client, ask(text))
		if err != nil {
			return nil, err
		}
		return []any{message.Content[0].Text, pieces, message.Usage.OutputTokens}, nil
	})
	checks.Check("tools", func(text string) (any, error) { return rounds(client, text) })
	checks.Check("tool_runner", func(text string) (any, error) {
		type input struct {
			City string `json:"city" jsonschema:"required"`
		}
		tool, err := toolrunner.NewBetaToolFromJSONSchema("get_weather", "The weather of a city", func(_ context.Context, in input) (anthropic.BetaToolResultBlockParamContentUnion, error) {
			return anthropic.BetaToolResultBlockParamContentUnion{OfText: &anthropic.BetaTextBlockParam{Text: in.City + ": sunny"}}, nil
		})
		if err != nil {
			return nil, err
		}
		runner := client.Beta.Messages.NewToolRunner([]anthropic.BetaTool{tool}, anthropic.BetaToolRunnerParams{BetaMessageNewParams: anthropic.BetaMessageNewParams{
			Model:     anthropic.Model(given.Model),
			MaxTokens: 2000,
			Messages:  []anthropic.BetaMessageParam{anthropic.NewBetaUserMessage(anthropic.NewBetaTextBlock(text))},
		}})
		message, err := runner.RunToCompletion(ctx)
		if err != nil {
			return nil, err
		}
		return message.Content[0].Text, nil
	})
	checks.Check("parse", func(text string) (any, error) {
		body := ask(text)
		body.OutputConfig.Format.Schema = checks.Person
		message, err := client.Messages.New(ctx, body)
		if err != nil {
			return nil, err
		}
		return json.RawMessage(message.Content[0].Text), nil
	})
	checks.Check("count_tokens", func(text string) (any, error) {
		counted, err := client.Messages.CountTokens(ctx, anthropic.MessageCountTokensParams{Model: anthropic.Model(given.Model), Messages: ask(text).Messages})
		if err != nil {
			return nil, err
		}
		return counted.InputTokens, nil
	})
	checks.Check("models", func(string) (any, error) {
		found := []string{}
		pager := client.Models.ListAutoPaging(ctx, anthropic.ModelListParams{Limit: anthropic.Int(3)})
		for pager.Next() {
			found = append(found, pager.Current().ID)
		}
		return found, pager.Err()
	})
	checks.Check("refused", func(text string) (any, error) {
		_, err := client.Messages.New(ctx, ask(text))
		return told(err)
	})
	checks.Check("broken", func(text string) (any, error) {
		_, _, err := read(client, ask(text))
		return fmt.Sprint(err), nil
	})
	checks.Check("bad_field", func(text string) (any, error) {
		body := ask(text)
		body.MaxTokens = -1
		_, err := client.Messages.New(ctx, body)
		return told(err)
	})
	checks.Check("bad_key", func(string) (any, error) {
		_, err := client.Messages.New(ctx, ask("Hello."), option.WithAPIKey("wrong"))
		return told(err)
	})
	checks.Check("abort", func(text string) (any, error) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		stream := client.Messages.NewStreaming(ctx, ask(text))
		for stream.Next() {
			if stream.Current().Delta.Text != "" {
				cancel()
			}
		}
		return errors.Is(stream.Err(), context.Canceled), nil
	})
}

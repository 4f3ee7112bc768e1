// Package checks runs the checks of a client's program, one after the other, and prints a line of JSON for each.
package checks

import (
	"encoding/json"
	"fmt"
	"os"
)

// Given is what standard input tells: where the proxy is, and by the name of a check what its user says.
var Given struct {
	URL   string            `json:"url"`
	Model string            `json:"model"`
	Key   string            `json:"key"`
	Texts map[string]string `json:"texts"`
}

func init() {
	if err := json.NewDecoder(os.Stdin).Decode(&Given); err != nil {
		panic(err)
	}
}

// Check runs a check at once; what it returns is its line.
func Check(name string, body func(text string) (any, error)) {
	line := struct {
		Check string `json:"check"`
		Value any    `json:"value,omitempty"`
		Error string `json:"error,omitempty"`
	}{Check: name}
	value, err := body(Given.Texts[name])
	line.Value = value
	if err != nil {
		line.Error = fmt.Sprintf("%T: %v", err, err)
	}
	told, err := json.Marshal(line)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(told))
}

// City is the argument of the tool get_weather.
type City struct {
	City string `json:"city"`
}

// WeatherOf answers a call of the tool get_weather.
func WeatherOf(arguments string) (string, error) {
	var city City
	err := json.Unmarshal([]byte(arguments), &city)
	return city.City + ": sunny", err
}

// Person is the schema of a person.
var Person = map[string]any{
	"type":                 "object",
	"properties":           map[string]any{"name": map[string]any{"type": "string"}, "age": map[string]any{"type": "integer"}},
	"required":             []string{"name", "age"},
	"additionalProperties": false,
}

// Weather is the schema of the tool's arguments.
var Weather = map[string]any{
	"type":       "object",
	"properties": map[string]any{"city": map[string]any{"type": "string"}},
	"required":   []string{"city"},
}

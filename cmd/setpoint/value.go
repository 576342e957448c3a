package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const valueHelp = `VALUE is JSON, or a bare word that stands for itself as a string:

  0.9   true   null   [0.1, 0.2]   {"a": 1}   "text"   NaN   Infinity   adam

@FILE reads it from a file and - from standard input; there, text that is not JSON
stands for itself too, without its last line break. What begins with {, [ or " but
is not JSON is refused, as most likely a slip; --text sends any VALUE as the text
that it is, where 5 is "5". An integer that JSON's numbers cannot hold exactly,
such as 9007199254740993, is sent as a string, which an integer variable reads.
An embedding is an array of numbers; a tensor is
{"dtype": "float32", "shape": [2], "data": "<base64>"}.`

// maxInput bounds what is read from a file or standard input, in bytes: no larger message can be sent anyway.
const maxInput = client.MaxMessageBytes

// input is a VALUE of the command line, read but not yet interpreted.
type input struct {
	text string
	// file is set where the text comes from a file or standard input.
	file bool
}

// readInput follows @FILE and -.
func (c *cli) readInput(argument string) (input, error) {
	path, isFile := strings.CutPrefix(argument, "@")
	if !isFile && argument != "-" {
		return input{text: argument}, checkText(argument)
	}
	name, reader := "standard input", c.stdin
	if isFile {
		name = path
		file, err := os.Open(path)
		if err != nil {
			return input{}, usagef("%v (to send text that begins with @, quote it: '\"@…\"')", err)
		}
		defer func() { _ = file.Close() }()
		reader = file
	}
	text, err := readText(name, reader)
	return input{text: text, file: true}, err
}

// readText reads text to its end.
func readText(name string, reader io.Reader) (string, error) {
	raw, err := io.ReadAll(io.LimitReader(reader, maxInput+1))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	if len(raw) > maxInput {
		return "", usagef("%s has more than %d MiB", name, maxInput>>20)
	}
	text := string(raw)
	if err := checkText(text); err != nil {
		return "", usagef("%s: %v", name, err)
	}
	return text, nil
}

func checkText(text string) error {
	if !utf8.ValidString(text) {
		return usagef("the value is not UTF-8 text")
	}
	return nil
}

// verbatim is the input as the text that it is. The line break that ends a file is the editor's, not the text's.
func (in input) verbatim() string {
	if !in.file {
		return in.text
	}
	return strings.TrimSuffix(strings.TrimSuffix(in.text, "\n"), "\r")
}

// parsed is a VALUE ready to be sent.
type parsed struct {
	value *setpointv1.Value
	// literal is how people write the value, where that is not how it is sent.
	literal string
	// hint is what to try where the server finds the type wrong.
	hint string
}

// text is the value as people write it.
func (p parsed) text() string {
	if p.literal != "" {
		return p.literal
	}
	return valueText(p.value)
}

// parseValue reads a VALUE whose variable's type is not known here.
func parseValue(in input) (parsed, error) {
	text := strings.Trim(in.text, " \t\r\n") // JSON's white space
	switch {
	case json.Valid([]byte(text)):
		return parseJSON(text)
	case strings.HasPrefix(text, "{"), strings.HasPrefix(text, "["), strings.HasPrefix(text, `"`):
		return parsed{}, usagef("the value begins like JSON, but is not (%v); add --text to send it as text", jsonError(text))
	}
	return textValue(in.verbatim())
}

// parseTyped reads a VALUE of a variable of known type.
func parseTyped(in input, kind setpointv1.VariableType) (parsed, error) {
	text := strings.Trim(in.text, " \t\r\n")
	switch kind {
	case setpointv1.VariableType_VARIABLE_TYPE_STRING, setpointv1.VariableType_VARIABLE_TYPE_CHOICE,
		setpointv1.VariableType_VARIABLE_TYPE_MODULE:
		// 5 and true are words here, but "5" in JSON's quotes is what it is everywhere.
		if strings.HasPrefix(text, `"`) {
			return parseValue(in)
		}
		return textValue(in.verbatim())
	case setpointv1.VariableType_VARIABLE_TYPE_FLOAT:
		if integerLiteral.MatchString(text) {
			return parseJSON(text + ".0") // a rounded float is what such a variable holds
		}
	}
	return parseValue(in)
}

// integerLiteral is an integer as JSON writes it.
var integerLiteral = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)

func parseJSON(text string) (parsed, error) {
	if integerLiteral.MatchString(text) && !exact(text) {
		value, err := textValue(text)
		return parsed{value: value.value, literal: text, hint: fmt.Sprintf("to send a float, write %.40s.0", text)}, err
	}
	value, err := client.JSON(json.RawMessage(text))
	if err != nil {
		return parsed{}, usagef("%v", err)
	}
	result := parsed{value: value}
	if !strings.ContainsAny(text[:1], `"{[`) {
		result.hint = fmt.Sprintf(`to send text, quote it: '%s', or add --text`, quoted(text))
	}
	return result, nil
}

// exact tells whether a double holds an integer.
func exact(literal string) bool {
	number, err := strconv.ParseFloat(literal, 64)
	if err != nil {
		return true // beyond any double, and any integer variable: not a matter of precision
	}
	held, _ := big.NewFloat(number).Int(nil)
	want, ok := new(big.Int).SetString(literal, 10)
	return ok && held.Cmp(want) == 0
}

// textValue is text as a JSON string.
func textValue(text string) (parsed, error) {
	value, err := client.JSON(text)
	if err != nil {
		return parsed{}, usagef("%v", err)
	}
	return parsed{value: value}, nil
}

func jsonError(text string) error {
	var ignored json.RawMessage
	err := json.Unmarshal([]byte(text), &ignored)
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		return fmt.Errorf("%w, at byte %d", err, syntax.Offset)
	}
	return err
}

// parseMetadata reads the flags --metadata K=V.
func parseMetadata(pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	result := make(map[string]string, len(pairs))
	for _, pair := range pairs {
		key, value, found := strings.Cut(pair, "=")
		if !found || key == "" {
			return nil, usagef("--metadata wants KEY=VALUE, not %q", pair)
		}
		if !utf8.ValidString(pair) {
			return nil, usagef("--metadata %q is not UTF-8 text", pair)
		}
		if _, twice := result[key]; twice {
			return nil, usagef("--metadata gives %q twice", key)
		}
		result[key] = value
	}
	return result, nil
}

// parseVersion reads a VERSION argument.
func parseVersion(argument string) (int64, error) {
	version, err := strconv.ParseInt(argument, 10, 64)
	if err != nil || version < 0 {
		return 0, usagef("VERSION is a whole number from 0, not %q", argument)
	}
	return version, nil
}

// parseType reads a TYPE argument.
func parseType(argument string) (setpointv1.VariableType, error) {
	number, ok := setpointv1.VariableType_value["VARIABLE_TYPE_"+strings.ToUpper(argument)]
	if !ok || number == 0 {
		return 0, usagef("no type %q; the types are %s", argument, enumList(setpointv1.VariableType_name, "VARIABLE_TYPE_"))
	}
	return setpointv1.VariableType(number), nil
}

// enumList is an enum's names, but the zero one, in order.
func enumList(names map[int32]string, prefix string) string {
	var list []string
	for number := int32(1); len(list) < len(names)-1; number++ {
		if name, ok := names[number]; ok {
			list = append(list, enumText(name, prefix))
		}
	}
	return strings.Join(list, ", ")
}

package main

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func jsonOf(t *testing.T, value *setpointv1.Value) string {
	t.Helper()
	raw, err := protojson.Marshal(value.GetJson())
	if err != nil {
		t.Fatal(err)
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, raw); err != nil {
		t.Fatal(err)
	}
	return compact.String()
}

func TestParseValue(t *testing.T) {
	t.Parallel()
	const unknown = setpointv1.VariableType_VARIABLE_TYPE_UNSPECIFIED
	const text = setpointv1.VariableType_VARIABLE_TYPE_STRING
	const float = setpointv1.VariableType_VARIABLE_TYPE_FLOAT
	const integer = setpointv1.VariableType_VARIABLE_TYPE_INTEGER
	tests := []struct {
		in   string
		kind setpointv1.VariableType
		want string // in JSON; empty for wrong usage
	}{
		{`0.9`, unknown, `0.9`},
		{` 5 `, unknown, `5`},
		{`-0`, unknown, `-0`},
		{`1e3`, unknown, `1000`},
		{`true`, unknown, `true`},
		{`null`, unknown, `null`},
		{`"5"`, unknown, `"5"`},
		{`[1, "a", {"b": null}]`, unknown, `[1,"a",{"b":null}]`},
		{`adam`, unknown, `"adam"`},
		{`two words `, unknown, `"two words "`},
		{`NaN`, unknown, `"NaN"`},
		{`-Infinity`, unknown, `"-Infinity"`},
		{`007`, unknown, `"007"`},
		{`0x10`, unknown, `"0x10"`},
		{`1 2`, unknown, `"1 2"`},
		{``, unknown, `""`},
		{`9007199254740992`, unknown, `9007199254740992`},
		{`9007199254740993`, unknown, `"9007199254740993"`},
		{`-9007199254740993`, unknown, `"-9007199254740993"`},
		{`9223372036854775807`, unknown, `"9223372036854775807"`},
		{`9223372036854775807`, integer, `"9223372036854775807"`},
		{`9007199254740993`, float, `9007199254740992`},
		{`9007199254740993.0`, unknown, `9007199254740992`},
		{`5`, text, `"5"`},
		{`true`, text, `"true"`},
		{`"5"`, text, `"5"`},
		{`[INST]`, text, `"[INST]"`},
		{`{`, text, `"{"`},
		{`"open`, text, ``},
		{`[INST]`, unknown, ``},
		{`{"a":`, unknown, ``},
		{`"open`, unknown, ``},
		{`1e400`, unknown, ``},
		{`1e400`, float, ``},
		{`[9007199254740993]`, unknown, ``},
		{strings.Repeat("9", 400), unknown, ``},
		{strings.Repeat("9", 400), float, ``},
	}
	for _, tt := range tests {
		got, err := parseTyped(input{text: tt.in}, tt.kind)
		if tt.want == "" {
			if err == nil {
				t.Errorf("%.20s as %v: got %v, want an error", tt.in, tt.kind, got.value)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s as %v: %v", tt.in, tt.kind, err)
			continue
		}
		if is := jsonOf(t, got.value); is != tt.want {
			t.Errorf("%s as %v: got %s, want %s", tt.in, tt.kind, is, tt.want)
		}
	}
}

// Whatever is typed either means nothing, or is sent as one JSON value that survives the wire: text as that text, and
// JSON as the same JSON.
func FuzzParseValue(f *testing.F) {
	for _, seed := range []string{"0.9", "-1", "adam", `"q"`, `{"a":[1,null]}`, "9007199254740993", "1e400", "NaN", "",
		"\x00", "[", "tr\u00fce", `"\ud800"`, "-Infinity", "1e-400", "00", " 7\n"} {
		f.Add(seed, false)
		f.Add(seed, true)
	}
	f.Fuzz(func(t *testing.T, text string, file bool) {
		if checkText(text) != nil {
			return
		}
		for kind := range setpointv1.VariableType_name {
			got, err := parseTyped(input{text: text, file: file}, setpointv1.VariableType(kind))
			if err != nil {
				continue
			}
			if got.value.GetJson().GetKind() == nil {
				t.Fatalf("%q: no JSON value", text)
			}
			wire, err := proto.Marshal(got.value)
			if err != nil {
				t.Fatalf("%q cannot be sent: %v", text, err)
			}
			back := &setpointv1.Value{}
			if err := proto.Unmarshal(wire, back); err != nil || !proto.Equal(got.value, back) {
				t.Fatalf("%q did not survive: %v", text, err)
			}
			checkShown(t, text, got.value)
		}
		checkMeaning(t, text, file)
	})
}

// checkShown requires that a value is shown on one printable line, in a form that is read as the same value.
func checkShown(t *testing.T, text string, value *setpointv1.Value) {
	t.Helper()
	shown := valueText(value)
	if printable(shown) != shown {
		t.Fatalf("%q is shown as %q, which a terminal may obey", text, shown)
	}
	again, err := parseValue(input{text: shown})
	if err != nil || !proto.Equal(again.value, value) {
		t.Fatalf("%q is shown as %s, which means %v (%v)", text, shown, again.value, err)
	}
}

func checkMeaning(t *testing.T, text string, file bool) {
	t.Helper()
	got, err := parseValue(input{text: text, file: file})
	if err != nil {
		return
	}
	var want any
	if json.Unmarshal([]byte(text), &want) != nil {
		if sent := got.value.GetJson().GetStringValue(); !strings.HasPrefix(text, sent) || len(text) > len(sent)+2 {
			t.Fatalf("the text %q is sent as %q", text, sent)
		}
		return
	}
	is := got.value.GetJson().AsInterface()
	if literal, ok := is.(string); ok {
		if _, number := want.(float64); number && literal == strings.TrimSpace(text) {
			return // an integer that would lose digits
		}
	}
	if diff := cmp.Diff(want, is); diff != "" {
		t.Fatalf("%q (-want +sent):\n%s", text, diff)
	}
}

func TestValueText(t *testing.T) {
	t.Parallel()
	tests := []struct {
		value *setpointv1.Value
		want  string
	}{
		{nil, "-"},
		{client.Bool(true), "true"},
		{client.Integer(math.MinInt64), "-9223372036854775808"},
		{client.Float(1), "1"},
		{client.Float(1e21), "1e+21"},
		{client.Float(math.NaN()), "NaN"},
		{client.Float(math.Inf(-1)), "-Infinity"},
		{client.String("a\"b\n<é>\u202e\U000e0001"), `"a\"b\n<é>\u202e\udb40\udc01"`},
		{client.Choice("adam"), `"adam"`},
		{client.Module("dspy.Predict"), `"dspy.Predict"`},
		{client.Embedding([]float32{0.1, float32(math.Inf(1))}), "[0.1, Infinity]"},
		{client.Tensor("int8", []int64{2, 1}, []byte{1, 255}), `{"dtype": "int8", "shape": [2, 1], "data": "Af8="}`},
	}
	for _, tt := range tests {
		if got := valueText(tt.value); got != tt.want {
			t.Errorf("got %s, want %s", got, tt.want)
		}
	}
}

func TestTruncate(t *testing.T) {
	t.Parallel()
	tests := []struct {
		text  string
		width int
		want  string
	}{
		{"hello", 5, "hello"},
		{"hello!", 5, "hell…"},
		{"日本語", 6, "日本語"},
		{"日本語", 5, "日本…"},
		{"日本語", 4, "日…"},
		{"e\u0301e\u0301e\u0301", 2, "e\u0301…"},
	}
	for _, tt := range tests {
		if got := truncate(tt.text, tt.width); got != tt.want {
			t.Errorf("%q to %d: got %q, want %q", tt.text, tt.width, got, tt.want)
		}
	}
}

func TestTableFitsTheTerminal(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	table := &table{out: &out, width: 40, columns: []column{{title: "NAME"}, {title: "N", right: true},
		{title: "WHY", long: true}, {title: "VALUE", long: true}}}
	table.rows = [][]string{
		{"a", "1", "short", strings.Repeat("x", 1<<20)},
		{"temperature", "10", "a reason that goes on and on", "0.7"},
	}
	if err := table.flush(); err != nil {
		t.Fatal(err)
	}
	table.rows = [][]string{{"b", "2", "-", strings.Repeat("日", 100)}}
	if err := table.flush(); err != nil {
		t.Fatal(err)
	}
	want := "NAME          N  WHY         VALUE\n" +
		"a             1  short       xxxxxxxxxx…\n" +
		"temperature  10  a reason …  0.7\n" +
		"b             2  -           日日日日日…\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

func TestTableLeavesOutWhatItCanSpare(t *testing.T) {
	t.Parallel()
	for width, want := range map[int]string{
		0:  "ID      WHEN  WHY          NOTE         VALUE\nabcdef  now   because not  a long note  1234567890\n",
		45: "ID      WHEN  NOTE         VALUE\nabcdef  now   a long note  1234567890\n",
		36: "ID      WHEN  NOTE        VALUE\nabcdef  now   a long no…  1234567890\n",
		31: "ID      NOTE         VALUE\nabcdef  a long note  1234567890\n",
		18: "ID      VALUE\nabcdef  1234567890\n",
		5:  "ID      VALUE\nabcdef  1234567…\n",
	} {
		var out bytes.Buffer
		table := &table{out: &out, width: width, columns: []column{{title: "ID"}, {title: "WHEN", spare: 2}, {title: "WHY", long: true, spare: 1},
			{title: "NOTE", long: true, spare: 3}, {title: "VALUE", long: true}}}
		table.rows = [][]string{{"abcdef", "now", "because not", "a long note", "1234567890"}}
		if err := table.flush(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("at %d (-want +got):\n%s", width, diff)
		}
	}
}

func TestRounded(t *testing.T) {
	t.Parallel()
	for number, want := range map[float64]string{
		0: "0", 0.1: "0.1", 0.1 + 0.2: "0.3", 1.0 / 3: "0.333333", -2.0 / 3: "-0.666667", 1234.56789: "1234.57", 99999.97: "100000",
		123456.789: "123457", 1234567: "1234567", -12345678.9: "-12345679", 1.0 / 3 * 1e-9: "3.33333e-10", 1.0 / 3 * 1e30: "3.33333e+29",
		math.MaxFloat64: "1.79769e+308", math.SmallestNonzeroFloat64: "5e-324", math.Inf(1): "Infinity", math.Inf(-1): "-Infinity",
	} {
		if got := rounded(number); got != want {
			t.Errorf("%v: got %s, want %s", number, got, want)
		}
	}
	if got := rounded(math.NaN()); got != "NaN" {
		t.Errorf("NaN: got %s", got)
	}
}

func TestShellWord(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"layer.0/w": "layer.0/w", "learning rate": "'learning rate'", "it's": `'it'\''s'`, "$x": "'$x'"} {
		if got := shellWord(in); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
}

func TestPrintable(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"plain é 日": "plain é 日", "a\nb\tc": `a\nb\tc`, "\x1b]0;x\a": `\x1b]0;x\a`, "\u202e": `\u202e`, "\xff": "\ufffd",
	} {
		got := printable(in)
		if got != want || !utf8.ValidString(got) {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestDurationText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{"1h": "1h", "90m": "1h30m", "10m": "10m", "1s": "1s", "0s": "0s", "10h5s": "10h0m5s"} {
		d := parseDuration(t, in)
		if got := durationText(d); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func parseDuration(t *testing.T, text string) time.Duration {
	t.Helper()
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

package client

import (
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

func TestValues(t *testing.T) {
	t.Parallel()
	tests := []struct {
		got  *setpointv1.Value
		want string // in protobuf's JSON
	}{
		{Bool(true), `{"boolean": true}`},
		{Integer(math.MinInt64), `{"integer": "-9223372036854775808"}`},
		{Float(0.7), `{"number": 0.7}`},
		{Float(math.Inf(-1)), `{"number": "-Infinity"}`},
		{String("hi"), `{"string": "hi"}`},
		{Choice("adam"), `{"choice": "adam"}`},
		{Module("dspy.Predict"), `{"module": "dspy.Predict"}`},
		{Embedding([]float32{0.5, -1}), `{"embedding": {"values": [0.5, -1]}}`},
		{Tensor("uint8", []int64{1, 2}, []byte{1, 2}), `{"tensor": {"dtype": "uint8", "shape": ["1", "2"], "data": "AQI="}}`},
	}
	for _, tt := range tests {
		want := &setpointv1.Value{}
		if err := protojson.Unmarshal([]byte(tt.want), want); err != nil {
			t.Fatalf("%s: %v", tt.want, err)
		}
		if diff := cmp.Diff(want, tt.got, protocmp.Transform()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.want, diff)
		}
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	tests := []struct {
		in   any
		want string // JSON, or what an error says
		bad  bool
	}{
		{nil, `null`, false},
		{true, `true`, false},
		{7, `7`, false},
		{int64(1) << 53, `9007199254740992`, false},
		{"text", `"text"`, false},
		{[]any{1, "a", nil}, `[1, "a", null]`, false},
		{struct {
			A int `json:"a"`
		}{5}, `{"a": 5}`, false},
		{json.RawMessage(`{"b": [0.1, 1e300]}`), `{"b": [0.1, 1e300]}`, false},
		{json.RawMessage(`10000000000000000000000`), `1e22`, false},
		{[]any{int64(1)<<53 + 1}, "9007199254740993", true},
		{int64(math.MaxInt64), "9223372036854775807", true},
		{json.RawMessage(`1e400`), "beyond the range", true},
		{json.RawMessage(strings.Repeat("9", 1000)), "9999…", true},
		{math.NaN(), "NaN", true},
		{make(chan int), "chan int", true},
		{json.RawMessage(`{`), "unexpected end", true},
	}
	for _, tt := range tests {
		got, err := JSON(tt.in)
		if tt.bad {
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v: got %v, %v, want an error with %q", tt.in, got, err, tt.want)
			}
			continue
		}
		want := &setpointv1.Value{}
		if err := protojson.Unmarshal([]byte(`{"json": `+tt.want+`}`), want); err != nil {
			t.Fatalf("%s: %v", tt.want, err)
		}
		if err != nil || !proto.Equal(want, got) {
			t.Errorf("%v: got %v, %v, want %v", tt.in, got, err, want)
		}
	}
}

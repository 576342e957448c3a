package expression

import (
	"testing"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

const benchmarkText = `mode == "fast" ? math.least(temperature * 1.5, 2.0) : temperature + double(steps) / 10.0`

var benchmarkInputs = []Input{{"mode", typeChoice}, {"steps", typeInteger}, {"temperature", typeFloat}}

func BenchmarkCompile(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		s, err := Parse(benchmarkText)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Compile(typeFloat, benchmarkInputs); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompileCached(b *testing.B) {
	b.ReportAllocs()
	cache := NewCache(8)
	for b.Loop() {
		if _, err := cache.Compile(benchmarkText, typeFloat, benchmarkInputs); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkEval(b *testing.B) {
	vector := make([]float32, 4096)
	for i := range vector {
		vector[i] = float32(i)
	}
	tests := []struct {
		name, text string
		typ        setpointv1.VariableType
		inputs     []Input
		values     map[string]*setpointv1.Value
	}{
		{"scalar", benchmarkText, typeFloat, benchmarkInputs, map[string]*setpointv1.Value{
			"mode": choice("slow"), "steps": integer(7), "temperature": number(0.5)}},
		{"vector", "v.map(x, x * 2.0)", typeEmbedding, []Input{{"v", typeEmbedding}},
			map[string]*setpointv1.Value{"v": embedding(vector...)}},
		{"limit", "v.exists(x, v.exists(y, x + y < 0.0))", typeBoolean, []Input{{"v", typeEmbedding}},
			map[string]*setpointv1.Value{"v": embedding(vector...)}},
	}
	for _, tt := range tests {
		b.Run(tt.name, func(b *testing.B) {
			b.ReportAllocs()
			s, err := Parse(tt.text)
			if err != nil {
				b.Fatal(err)
			}
			p, err := s.Compile(tt.typ, tt.inputs)
			if err != nil {
				b.Fatal(err)
			}
			var cost uint64
			for b.Loop() {
				_, cost, err = p.Eval(b.Context(), tt.values)
				if err != nil && tt.name != "limit" {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cost), "cost/op")
		})
	}
}

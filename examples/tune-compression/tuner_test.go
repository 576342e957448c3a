package main

import (
	"bytes"
	"compress/flate"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// prose is text that compresses about as source code does.
func prose(size int) []byte {
	random := rand.New(rand.NewPCG(1, 2))
	words := make([]string, 3000)
	for i := range words {
		words[i] = strconv.FormatUint(random.Uint64()>>uint(24+random.IntN(30)), 36)
	}
	var text bytes.Buffer
	for text.Len() < size {
		rank := int(random.ExpFloat64() * 300)
		fmt.Fprintf(&text, "%s ", words[min(rank, len(words)-1)])
		if random.IntN(9) == 0 {
			text.WriteString("\n\t")
		}
	}
	return text.Bytes()[:size]
}

func TestCostIsWhatTheFormulaSays(t *testing.T) {
	t.Parallel()
	data := prose(20 << 10) // two whole blocks of 8 KiB and half a one
	s := setting{level: 6, block: 1}
	var stored, read float64
	for _, block := range [][]byte{data[:8192], data[8192:16384], data[16384:]} {
		var compressed bytes.Buffer
		w, err := flate.NewWriter(&compressed, 6)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(block); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		stored += float64(compressed.Len()) / float64(len(data))
		read += float64(compressed.Len()) * float64(len(block)) / float64(len(data))
		back, err := io.ReadAll(flate.NewReader(&compressed))
		if err != nil || !bytes.Equal(back, block) {
			t.Fatalf("a block does not stand alone: %v", err)
		}
	}
	got, err := (&corpus{data: data}).cost(s)
	if err != nil {
		t.Fatal(err)
	}
	if want := stored + read/readUnit + 6*levelPrice; got < want-1e-9 || got > want+1e-9 {
		t.Errorf("cost of %s: got %.9f, want %.9f", s, got, want)
	}
}

func TestTheBestSettingIsNotAtAnEdge(t *testing.T) {
	t.Parallel()
	eval := newEvaluator(&corpus{data: prose(160 << 10)})
	best, lowest := setting{}, 1e9
	for level := minLevel; level <= maxLevel; level++ {
		for block := range blockSizes {
			cost, err := eval.cost(setting{level, block})
			if err != nil {
				t.Fatal(err)
			}
			if cost < lowest {
				best, lowest = setting{level, block}, cost
			}
		}
	}
	if best.level == minLevel || best.level == maxLevel || best.block == 0 || best.block == len(blockSizes)-1 {
		t.Errorf("best: %s", best)
	}
	if eval.tried() != 81 {
		t.Errorf("tried: got %d, want 81", eval.tried())
	}
}

func TestProposeIsOneStepWithinBounds(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	seen := map[setting]bool{}
	at := setting{level: minLevel}
	for range 10_000 {
		next := propose(at, random)
		level, block := next.level-at.level, next.block-at.block
		if level*level+block*block != 1 {
			t.Fatalf("from %v to %v is not one step", at, next)
		}
		if next.level < minLevel || next.level > maxLevel || next.block < 0 || next.block >= len(blockSizes) {
			t.Fatalf("%v is out of bounds", next)
		}
		seen[next] = true
		at = next
	}
	if len(seen) != 81 {
		t.Errorf("a random walk saw %d of 81 settings", len(seen))
	}
}

func TestAccept(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 1))
	count := func(before, after, done float64) int {
		n := 0
		for range 1000 {
			if accept(before, after, done, random) {
				n++
			}
		}
		return n
	}
	if n := count(0.5, 0.4, 0.9); n != 1000 {
		t.Errorf("better: accepted %d of 1000", n)
	}
	early, late := count(0.4, 0.405, 0), count(0.4, 0.405, 0.9)
	if early < 500 || early > 700 || late > 10 {
		t.Errorf("worse: accepted %d of 1000 early and %d late", early, late)
	}
	if n := count(0.4, 0.41, 1); n != 0 {
		t.Errorf("worse, at the end: accepted %d of 1000", n)
	}
}

func TestReadCorpus(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{"a/1": "one", "a/.ignored": "", "b": "two", ".git/x": "no", "c": "three"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for limit, want := range map[int]string{100: "onetwothree", 8: "onetwoth", 6: "onetwo"} {
		got, err := readCorpus(dir, limit)
		if err != nil || string(got.data) != want {
			t.Errorf("limit %d: got %q, %v, want %q", limit, got.data, err, want)
		}
	}
	if got, err := readCorpus(filepath.Join(dir, ".git"), 100); err != nil || string(got.data) != "no" {
		t.Errorf("a folder named itself: got %q, %v", got.data, err)
	}
	if _, err := readCorpus(filepath.Join(dir, ".git", "none"), 1); err == nil {
		t.Error("a folder that is not there was read")
	}
	if _, err := readCorpus(t.TempDir(), 1); err == nil {
		t.Error("an empty folder was read")
	}
}

// A trial's values stand for the setting that it tried.
func TestTrialTellsItsSetting(t *testing.T) {
	t.Parallel()
	for level := minLevel; level <= maxLevel; level++ {
		for block := range blockSizes {
			want := setting{level, block}
			report := trial(want, 0.25, "note")
			got, err := settingOf(report.GetValues())
			if err != nil || got != want || report.GetMetrics()[costMetric] != 0.25 {
				t.Errorf("%v: got %v with %v, %v", want, got, report.GetMetrics(), err)
			}
		}
	}
	for _, values := range []map[string]*setpointv1.Value{
		nil,
		{levelVariable: client.Integer(5), blockVariable: client.Choice("5KiB")},
		{levelVariable: client.Integer(10), blockVariable: client.Choice("4KiB")},
	} {
		if got, err := settingOf(values); err == nil {
			t.Errorf("%v: got %v, want an error", values, got)
		}
	}
}

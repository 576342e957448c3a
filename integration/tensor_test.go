package integration

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/testkit"
)

const mebibyte = 1 << 20

// dialCounting connects and counts the connections that it takes.
func dialCounting(t *testing.T, s *server) (*client.Client, *atomic.Int64) {
	t.Helper()
	var dials atomic.Int64
	return dial(t, s, client.WithDialOptions(grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
		dials.Add(1)
		return new(net.Dialer).DialContext(ctx, "tcp", addr)
	}))), &dials
}

// noise is bytes that nothing compresses, the same for a seed.
func noise(seed uint64, n int) []byte {
	data := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed)}).Read(data) // It never fails.
	return data
}

func TestLargestTensor(t *testing.T) {
	t.Parallel()
	c, dials := dialCounting(t, serve(t, testkit.NewDatabase(t)))
	newSession(t, c, "large")
	shape := []int64{2048, 2048}
	first, second := noise(1, 16*mebibyte), noise(2, 16*mebibyte)
	check := func(what string, v *setpointv1.Value, want []byte) {
		t.Helper()
		tensor := v.GetTensor()
		if tensor.GetDtype() != "float32" || fmt.Sprint(tensor.GetShape()) != fmt.Sprint(shape) {
			t.Errorf("%s: got dtype %s, shape %v", what, tensor.GetDtype(), tensor.GetShape())
		}
		if !bytes.Equal(tensor.GetData(), want) {
			t.Errorf("%s: the %d bytes differ from the %d that were sent", what, len(tensor.GetData()), len(want))
		}
	}

	registered := register(t, c, "large", "weights", typeTensor, client.Tensor("float32", shape, first))
	check("the answer to the registration", registered.GetValue(), first)
	check("version 0", get(t, c, "large", "weights").GetValue(), first)
	set(t, c, "large", "weights", client.Tensor("float32", shape, second))
	check("version 1", get(t, c, "large", "weights").GetValue(), second)
	for version, want := range [][]byte{first, second} {
		entry, err := c.History.GetVariableVersion(t.Context(), &setpointv1.GetVariableVersionRequest{
			SessionId: "large", Variable: "weights", Version: int64(version)})
		if err != nil {
			t.Fatal(err)
		}
		check(fmt.Sprintf("version %d in history", version), entry.GetValue(), want)
	}
	rolled, err := c.History.RollbackVariable(t.Context(),
		&setpointv1.RollbackVariableRequest{SessionId: "large", Variable: "weights", Version: 0})
	if err != nil {
		t.Fatal(err)
	}
	check("the answer to the rollback", rolled.GetValue(), first)
	check("version 2", get(t, c, "large", "weights").GetValue(), first)

	// Each is larger than a page may be, so each has a page of its own.
	request := &setpointv1.ListHistoryRequest{SessionId: "large", Variable: "weights"}
	for version := int64(2); version >= 0; version-- {
		page, err := c.History.ListHistory(t.Context(), request)
		if err != nil {
			t.Fatal(err)
		}
		if len(page.GetEntries()) != 1 || page.GetEntries()[0].GetVersion() != version || (page.GetNextPageToken() == "") != (version == 0) {
			t.Fatalf("the page of version %d has %d entries, from version %d, and the next page token %q", version,
				len(page.GetEntries()), page.GetEntries()[0].GetVersion(), page.GetNextPageToken())
		}
		check(fmt.Sprintf("version %d in a list", version), page.GetEntries()[0].GetValue(), [][]byte{first, second, first}[version])
		request.PageToken = page.GetNextPageToken()
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("it took %d connections, not 1", n)
	}
}

// nested is a JSON array of texts that is about n bytes long as JSON.
func nested(t *testing.T, n int) *setpointv1.Value {
	t.Helper()
	texts := make([]string, 16)
	for i := range texts {
		texts[i] = strings.Repeat("j", n/16-8)
	}
	v, err := client.JSON(texts)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// A value above the bound is refused, to be registered and to be set, and the connection serves on.
func TestValuesNearTheBound(t *testing.T) {
	t.Parallel()
	c, dials := dialCounting(t, serve(t, testkit.NewDatabase(t)))
	newSession(t, c, "large")
	elements := noise(3, 17*mebibyte)
	for _, tt := range []struct {
		name        string
		kind        setpointv1.VariableType
		fits, large *setpointv1.Value
	}{
		{
			"tensor", typeTensor,
			client.Tensor("uint8", []int64{16 * mebibyte}, elements[:16*mebibyte]),
			client.Tensor("uint8", []int64{17 * mebibyte}, elements),
		},
		{
			"tensor, a byte more", typeTensor,
			client.Tensor("uint8", []int64{1}, elements[:1]),
			client.Tensor("uint8", []int64{16*mebibyte + 1}, elements[:16*mebibyte+1]),
		},
		{
			"embedding", typeEmbedding,
			client.Embedding(make([]float32, 4*mebibyte)),
			client.Embedding(make([]float32, 4*mebibyte+1)),
		},
		{
			// The quotes around it count.
			"string", typeString,
			client.String(strings.Repeat("s", 16*mebibyte)),
			client.String(strings.Repeat("s", 16*mebibyte+1)),
		},
		{"json", typeJSON, nested(t, 16*mebibyte), nested(t, 17*mebibyte)},
	} {
		_, err := c.Variables.RegisterVariable(t.Context(), &setpointv1.RegisterVariableRequest{
			SessionId: "large", Name: tt.name, Type: tt.kind, Value: tt.large})
		checkTooLarge(t, tt.name+", registered", err)
		register(t, c, "large", tt.name, tt.kind, tt.fits)
		_, err = c.Variables.SetVariable(t.Context(),
			&setpointv1.SetVariableRequest{SessionId: "large", Variable: tt.name, Value: tt.large})
		checkTooLarge(t, tt.name+", set", err)
		set(t, c, "large", tt.name, tt.fits)
		if v := get(t, c, "large", tt.name); v.GetVersion() != 1 || !proto.Equal(v.GetValue(), tt.fits) {
			t.Errorf("%s: version %d is not what was set", tt.name, v.GetVersion())
		}
	}
	if n := dials.Load(); n != 1 {
		t.Errorf("it took %d connections, not 1", n)
	}
}

func checkTooLarge(t *testing.T, what string, err error) {
	t.Helper()
	refusal := refused(t, what, err, client.ErrLimitExceeded)
	if refusal.Code != codes.ResourceExhausted || refusal.Metadata["limit"] != "value_bytes" ||
		refusal.Metadata["value"] != fmt.Sprint(16*mebibyte) {
		t.Errorf("%s: got %v with metadata %v", what, refusal.Code, refusal.Metadata)
	}
}

package service_test

import (
	"fmt"
	"testing"

	"github.com/setpointdb/setpoint/client"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/server"
)

func (b *bundle) rollback(version int64) (*setpointv1.Variable, error) {
	return b.History.RollbackVariable(b.ctx, &setpointv1.RollbackVariableRequest{
		SessionId: "s", Variable: "x", Version: version, Reason: "back",
	})
}

func TestRollback(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.integer("x")
	b.set("x", client.Integer(100))
	if _, err := b.Variables.SetVariable(b.ctx, &setpointv1.SetVariableRequest{
		SessionId: "s", Variable: "x", Value: client.Integer(200), Metadata: map[string]string{"k": "v"},
	}); err != nil {
		t.Fatal(err)
	}
	v, err := b.rollback(1)
	if err != nil {
		t.Fatal(err)
	}
	if v.GetVersion() != 3 || v.GetValue().GetInteger() != 100 || v.GetMetadata()["k"] != "v" {
		t.Errorf("rolled back: %v; want version 3, value 100, the metadata of before", v)
	}
	equal(t, "answer", b.get("x"), v)
	entry, err := b.History.GetVariableVersion(b.ctx, &setpointv1.GetVariableVersionRequest{SessionId: "s", Variable: "x", Version: 3})
	if err != nil || entry.GetChange() != setpointv1.HistoryChange_HISTORY_CHANGE_ROLLED_BACK || entry.GetReason() != "back" {
		t.Errorf("history: %v, %v", entry, err)
	}
	if v, err = b.rollback(3); err != nil || v.GetVersion() != 4 {
		t.Errorf("to the current version: %v, %v; want a new one", v, err)
	}
	_, err = b.History.RollbackVariable(b.ctx, &setpointv1.RollbackVariableRequest{
		SessionId: "s", Variable: "x", Version: 1, ExpectedVersion: ptr(int64(3)),
	})
	wantReason(t, err, setpointv1.ErrorReason_VERSION_MISMATCH)
	_, err = b.rollback(5)
	wantMetadata(t, wantReason(t, err, setpointv1.ErrorReason_VERSION_NOT_AVAILABLE),
		map[string]string{"variable": "x", "oldest_version": "0", "current_version": "4"})
	if _, err = b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
		SessionId: "s", Variable: "x", Constraints: &setpointv1.Constraints{Max: ptr(150.0)},
	}); err != nil {
		t.Fatal(err)
	}
	_, err = b.rollback(2)
	wantReason(t, err, setpointv1.ErrorReason_CONSTRAINT_VIOLATION)
	if v := b.get("x"); v.GetVersion() != 4 {
		t.Errorf("a refused rollback wrote version %d", v.GetVersion())
	}
}

// What history_limit hides cannot be listed, read or rolled back to, at once; raising it shows again what is still kept.
func TestHistoryLimit(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "x", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER, Value: client.Integer(0), HistoryLimit: ptr(int64(2)),
	})
	for i := range 5 {
		b.set("x", client.Integer(int64(i+1)))
	}
	versions := func(variable string) []int64 {
		t.Helper()
		list, err := b.History.ListHistory(b.ctx, &setpointv1.ListHistoryRequest{SessionId: "s", Variable: variable})
		if err != nil {
			t.Fatal(err)
		}
		var out []int64
		for _, e := range list.GetEntries() {
			if e.Version != nil {
				out = append(out, e.GetVersion())
			}
		}
		return out
	}
	equal(t, "versions", []int64{5, 4, 3}, versions("x"))
	equal(t, "versions in the session's history", []int64{5, 4, 3}, versions(""))
	_, err := b.History.GetVariableVersion(b.ctx, &setpointv1.GetVariableVersionRequest{SessionId: "s", Variable: "x", Version: 2})
	wantMetadata(t, wantReason(t, err, setpointv1.ErrorReason_VERSION_NOT_AVAILABLE),
		map[string]string{"variable": "x", "oldest_version": "3", "current_version": "5"})
	_, err = b.rollback(2)
	wantReason(t, err, setpointv1.ErrorReason_VERSION_NOT_AVAILABLE)
	if _, err := b.rollback(3); err != nil {
		t.Error(err)
	}
	for limit, want := range map[int64][]int64{0: {6, 5, 4, 3, 2, 1, 0}, 4: {6, 5, 4, 3, 2}} {
		if _, err := b.Variables.UpdateVariable(b.ctx, &setpointv1.UpdateVariableRequest{
			SessionId: "s", Variable: "x", HistoryLimit: &limit,
		}); err != nil {
			t.Fatal(err)
		}
		equal(t, fmt.Sprint("versions with limit ", limit), want, versions("x"))
	}
	// What a sweeper has removed is not available either, and the floor is told.
	b.exec(`delete from setpoint.history where version < 4`)
	_, err = b.History.GetVariableVersion(b.ctx, &setpointv1.GetVariableVersionRequest{SessionId: "s", Variable: "x", Version: 2})
	wantMetadata(t, wantReason(t, err, setpointv1.ErrorReason_VERSION_NOT_AVAILABLE),
		map[string]string{"variable": "x", "oldest_version": "4", "current_version": "6"})
}

func TestListHistory(t *testing.T) {
	t.Parallel()
	b := setup(t, func(c *server.Config) { c.Limits.PageBytes = 500 })
	b.integer("x")
	b.integer("y")
	for i := range 4 {
		b.set("x", client.Integer(int64(i)))
		b.set("y", client.Integer(int64(i)))
	}
	if _, err := b.Variables.DeleteVariable(b.ctx, &setpointv1.DeleteVariableRequest{SessionId: "s", Variable: "y"}); err != nil {
		t.Fatal(err)
	}
	b.register(&setpointv1.RegisterVariableRequest{
		Name: "e", Type: setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING, Value: client.Embedding(make([]float32, 100)),
	})
	b.set("e", client.Embedding(make([]float32, 100)))
	b.set("e", client.Embedding([]float32{1}))
	list := func(req *setpointv1.ListHistoryRequest) ([]int64, int) {
		t.Helper()
		req.SessionId = "s"
		var got []int64
		for pages := 1; ; pages++ {
			page, err := b.History.ListHistory(b.ctx, req)
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range page.GetEntries() {
				got = append(got, e.GetRevision())
			}
			if req.PageToken = page.GetNextPageToken(); req.PageToken == "" {
				return got, pages
			}
		}
	}
	set := []setpointv1.HistoryChange{setpointv1.HistoryChange_HISTORY_CHANGE_SET}
	deleted := []setpointv1.HistoryChange{setpointv1.HistoryChange_HISTORY_CHANGE_DELETED}
	for name, test := range map[string]struct {
		variable string
		changes  []setpointv1.HistoryChange
		want     []int64
	}{
		"the session":          {"", nil, []int64{14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1}},
		"a variable":           {"x", nil, []int64{9, 7, 5, 3, 1}},
		"a variable's sets":    {"x", set, []int64{9, 7, 5, 3}},
		"the session's deaths": {"", deleted, []int64{11}},
		"nothing":              {"x", deleted, nil},
	} {
		for _, size := range []int32{0, 1, 4} {
			got, _ := list(&setpointv1.ListHistoryRequest{Variable: test.variable, Changes: test.changes, PageSize: size})
			equal(t, fmt.Sprintf("%s by %d", name, size), test.want, got)
		}
	}
	// 4, 400 and 400 bytes, at most 500 a page.
	if got, pages := list(&setpointv1.ListHistoryRequest{Variable: "e"}); len(got) != 3 || pages != 2 {
		t.Errorf("large values: %v on %d pages, want 3 on 2", got, pages)
	}
	_, err := b.History.ListHistory(b.ctx, &setpointv1.ListHistoryRequest{SessionId: "s", Variable: "no"})
	wantReason(t, err, setpointv1.ErrorReason_VARIABLE_NOT_FOUND)
	_, err = b.History.ListHistory(b.ctx, &setpointv1.ListHistoryRequest{SessionId: "s", Variable: "no", Changes: set})
	wantReason(t, err, setpointv1.ErrorReason_VARIABLE_NOT_FOUND)
	_, err = b.History.ListHistory(b.ctx, &setpointv1.ListHistoryRequest{SessionId: "s", Changes: []setpointv1.HistoryChange{77}})
	wantReason(t, err, setpointv1.ErrorReason_INVALID_REQUEST)
}

// The analytics view gives every type in a column of its own, and stays readable whatever a value is.
func TestAnalyticsView(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for name, v := range map[string]struct {
		kind  setpointv1.VariableType
		value *setpointv1.Value
	}{
		"b": {setpointv1.VariableType_VARIABLE_TYPE_BOOLEAN, client.Bool(true)},
		"i": {setpointv1.VariableType_VARIABLE_TYPE_INTEGER, client.Integer(9007199254740993)},
		"f": {setpointv1.VariableType_VARIABLE_TYPE_FLOAT, jsonOf(t, "NaN")},
		"m": {setpointv1.VariableType_VARIABLE_TYPE_MODULE, client.Module("1e5")},
		"e": {setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING, client.Embedding([]float32{3, 4})},
	} {
		b.register(&setpointv1.RegisterVariableRequest{Name: name, Type: v.kind, Value: v.value})
	}
	var got string
	b.row(&got, `select string_agg(concat_ws(' ', variable, boolean_value, integer_value, float_value, text_value,
		json_value ->> 'norm'), ', ' order by variable) from setpoint_analytics.variable_history`)
	if want := "b t, e 5, f NaN, i 9007199254740993, m 1e5"; got != want {
		t.Errorf("view: %s, want %s", got, want)
	}
	var undocumented *string
	b.row(&undocumented, `select string_agg(attname, ', ') from pg_attribute
		where attrelid = 'setpoint_analytics.variable_history'::regclass and attnum > 0
		and col_description(attrelid, attnum) is null`)
	if undocumented != nil {
		t.Errorf("columns without documentation: %s", *undocumented)
	}
	// The analysts' role reads the view and nothing under it.
	for query, allowed := range map[string]bool{
		`select count(*) from setpoint_analytics.variable_history`: true, `select count(*) from setpoint.history`: false,
	} {
		tx, err := b.sql.Begin(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Exec(b.ctx, `set local role setpoint_analyst`); err != nil {
			t.Fatal(err)
		}
		_, err = tx.Exec(b.ctx, query)
		if (err == nil) != allowed {
			t.Errorf("%s as an analyst: %v", query, err)
		}
		_ = tx.Rollback(b.ctx)
	}
}

package service

import (
	"slices"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/internal/identity"
)

// Every RPC of every service says what it takes, and nothing else does.
func TestRequirementsAreComplete(t *testing.T) {
	t.Parallel()
	words := append(identity.AllPermissions.Names(), anybody, anything, ownerOnly)
	found := map[string]bool{}
	protoregistry.GlobalFiles.RangeFilesByPackage("setpoint.v1", func(file protoreflect.FileDescriptor) bool {
		for i := range file.Services().Len() {
			service := file.Services().Get(i)
			for j := range service.Methods().Len() {
				method := service.Methods().Get(j)
				name := string(service.FullName()) + "/" + string(method.Name())
				found[name] = true
				need, ok := requirements[name]
				if !ok {
					t.Errorf("%s does not say what it takes", name)
				}
				inSession := method.Input().Fields().ByName("session_id") != nil
				if !slices.Contains(words, need) || need == anything && !inSession {
					t.Errorf("%s takes %q", name, need)
				}
			}
		}
		return true
	})
	for name := range requirements {
		if !found[name] {
			t.Errorf("%s is no RPC", name)
		}
	}
	if len(found) < 40 {
		t.Errorf("only %d RPCs are found", len(found))
	}
}

// The API's permissions and kinds of audit events are all known by their words.
func TestAccessWordsAreComplete(t *testing.T) {
	t.Parallel()
	for number, name := range setpointv1.Permission_name {
		p := setpointv1.Permission(number)
		if got := permissionList(permissions[p]); number != 0 && (len(got) != 1 || got[0] != p) {
			t.Errorf("%s is %v", name, got)
		}
	}
	if len(permissions) != len(setpointv1.Permission_name)-1 || permissions[0] != 0 {
		t.Errorf("%d permissions are known", len(permissions))
	}
	for number, name := range setpointv1.AuditEventKind_name {
		kind := setpointv1.AuditEventKind(number)
		if number != 0 && auditKindsByName[auditKinds[kind]] != kind {
			t.Errorf("%s is %q", name, auditKinds[kind])
		}
	}
	if len(auditKinds) != len(setpointv1.AuditEventKind_name)-1 {
		t.Errorf("%d kinds are known", len(auditKinds))
	}
	for _, word := range []string{toRead, toWrite, toOptimize, toAdmin} {
		if _, ok := identity.ParsePermission(word); !ok {
			t.Errorf("%q is no permission", word)
		}
	}
}

package server

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/service"
)

// route is where an RPC is found over HTTP, and what it takes there.
type route struct {
	rpc    protoreflect.FullName
	method string
	// template is the path as the .proto file has it; path matches percent-encoded ones.
	template string
	path     *regexp.Regexp
	fields   protoreflect.FieldDescriptors
	// body says that what the path does not give is in the body; else it is in the query.
	body bool
	// stream says that the answer is a stream of messages.
	stream bool
}

// routes are the API's, by method and the gateway's writing of the path.
type routes map[string]route

// newRoutes reads the routes from the API's descriptors.
func newRoutes() routes {
	found := make(routes)
	protoregistry.GlobalFiles.RangeFilesByPackage(setpointv1.File_setpoint_v1_session_proto.Package(),
		func(file protoreflect.FileDescriptor) bool {
			for i := range file.Services().Len() {
				methods := file.Services().Get(i).Methods()
				for j := range methods.Len() {
					found.add(methods.Get(j))
				}
			}
			return true
		})
	return found
}

func (rs routes) add(rpc protoreflect.MethodDescriptor) {
	rule, _ := proto.GetExtension(rpc.Options(), annotations.E_Http).(*annotations.HttpRule)
	for _, rule := range append(rule.GetAdditionalBindings(), rule) {
		rs.bind(rpc, rule)
	}
}

func (rs routes) bind(rpc protoreflect.MethodDescriptor, rule *annotations.HttpRule) {
	method, template := split(rule)
	if template == "" {
		return // A test sees to it that every RPC has one.
	}
	variable := regexp.MustCompile(`\\\{[^}]*\\\}`)
	rs[method+" "+strings.ReplaceAll(template, "}", "=*}")] = route{
		rpc: rpc.FullName(), method: method, template: template,
		path:   regexp.MustCompile("^" + variable.ReplaceAllString(regexp.QuoteMeta(template), "[^/]*") + "$"),
		fields: rpc.Input().Fields(),
		body:   rule.GetBody() == "*",
		stream: rpc.IsStreamingServer(),
	}
}

// split returns a rule's method and path, empty where there is no rule.
func split(rule *annotations.HttpRule) (string, string) {
	switch {
	case rule.GetGet() != "":
		return http.MethodGet, rule.GetGet()
	case rule.GetPost() != "":
		return http.MethodPost, rule.GetPost()
	case rule.GetPut() != "":
		return http.MethodPut, rule.GetPut()
	case rule.GetPatch() != "":
		return http.MethodPatch, rule.GetPatch()
	default:
		return http.MethodDelete, rule.GetDelete()
	}
}

// allowed returns the methods that a path takes, sorted.
func (rs routes) allowed(path string) []string {
	var methods []string
	for _, r := range rs {
		if r.path.MatchString(path) {
			methods = append(methods, r.method)
		}
	}
	slices.Sort(methods)
	return slices.Compact(methods)
}

// admit refuses parameters where they would go unheeded, and reads the body. params are those of the path.
func (r route) admit(w http.ResponseWriter, req *http.Request, params map[string]string) error {
	for name, text := range params {
		if !utf8.ValidString(text) {
			return service.InvalidRequest(name, "must be UTF-8")
		}
	}
	query, err := url.ParseQuery(req.URL.RawQuery)
	if err != nil {
		return service.InvalidRequest("query", err.Error())
	}
	for name, texts := range query {
		if !r.takes(name, params) {
			return service.InvalidRequest("query", "there is no parameter "+shown(name)+" here")
		}
		for _, text := range texts {
			if !utf8.ValidString(text) {
				return service.InvalidRequest(name, "must be UTF-8")
			}
		}
	}
	if !r.body {
		if n, _ := io.ReadFull(req.Body, make([]byte, 1)); n > 0 {
			return service.InvalidRequest("body", "must be empty: parameters go in the query")
		}
		return nil
	}
	return readBody(w, req, params)
}

// shown is the name of a parameter as an error has it. What is longer than any name may be a secret in the wrong place.
func shown(name string) string {
	if len(name) > 40 {
		return "of that name"
	}
	return strings.ToValidUTF8(name, "�")
}

// takes tells whether the query may have a parameter.
func (r route) takes(name string, params map[string]string) bool {
	if r.body || !isParameter(r.fields, name) {
		return false
	}
	outer, _, _ := strings.Cut(name, ".")
	_, inPath := params[string(fieldNamed(r.fields, outer).Name())]
	return !inPath
}

// isParameter tells whether a field can be given in a query. Those of a message are given one by one, after its own name:
// `lease.fencing_token`. Protobuf's own messages, such as a time, are given whole.
func isParameter(fields protoreflect.FieldDescriptors, name string) bool {
	outer, inner, nested := strings.Cut(name, ".")
	field := fieldNamed(fields, outer)
	if field == nil || field.IsMap() {
		return false
	}
	message := field.Message()
	if message == nil || message.ParentFile().Package() == "google.protobuf" {
		return !nested
	}
	return nested && !field.IsList() && isParameter(message.Fields(), inner)
}

// fieldNamed returns the field that has a name in the .proto file or in JSON; nil if there is none.
func fieldNamed(fields protoreflect.FieldDescriptors, name string) protoreflect.FieldDescriptor {
	if field := fields.ByTextName(name); field != nil {
		return field
	}
	return fields.ByJSONName(name)
}

// readBody reads the whole body, so that what is wrong with it is told from what is wrong with its content.
func readBody(w http.ResponseWriter, req *http.Request, params map[string]string) error {
	if req.ContentLength > MaxMessageBytes {
		return tooLarge()
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, req.Body, MaxMessageBytes))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge()
	}
	if err != nil {
		return service.InvalidRequest("body", "could not be read to its end")
	}
	// An element has 4 bytes or more in a message, so this one would be too large; but only after `0,0,0` had become
	// millions of objects, which take many times the memory.
	if countElements(data) > MaxMessageBytes/4 {
		return tooLarge()
	}
	req.Body = &requestBody{Reader: bytes.NewReader(data), data: data, params: params}
	return nil
}

// countElements counts the commas between the elements of a JSON document.
func countElements(data []byte) int {
	n, inText := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case c == '"':
			inText = !inText
		case inText && c == '\\':
			i++
		case c == ',' && !inText:
			n++
		}
	}
	return n
}

// requestBody is a body that was read, and the parameters that the path gave.
type requestBody struct {
	*bytes.Reader
	data   []byte
	params map[string]string
}

// Close does nothing: net/http closes the body that it made.
func (*requestBody) Close() error { return nil }

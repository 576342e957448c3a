package server

import (
	"bytes"
	"fmt"
	"io"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxJSONNesting bounds how deep messages may lie in each other; a variable's value nests far less.
const maxJSONNesting = 200

// jsonForm is protobuf's JSON mapping, with the .proto files' names of fields and with the fields that are not set. Of a
// stream, each message is a line.
type jsonForm struct{ *runtime.JSONPb }

var form = jsonForm{&runtime.JSONPb{MarshalOptions: protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}}}

// StreamContentType is the type of newline-delimited JSON.
func (jsonForm) StreamContentType(any) string { return "application/x-ndjson" }

// NewDecoder reads a requestBody. Nothing may follow the document, and nothing in it may be unknown or gainsay the path.
func (jsonForm) NewDecoder(r io.Reader) runtime.Decoder {
	return runtime.DecoderFunc(func(v any) error {
		body, isBody := r.(*requestBody)
		message, isMessage := v.(proto.Message)
		if !isBody || !isMessage {
			return fmt.Errorf("body: cannot be read into %T", v)
		}
		if len(bytes.TrimSpace(body.data)) == 0 {
			return io.EOF // Which the gateway takes for an empty message.
		}
		if err := (protojson.UnmarshalOptions{RecursionLimit: maxJSONNesting}).Unmarshal(body.data, message); err != nil {
			return fmt.Errorf("body: %s", plain(err))
		}
		m := message.ProtoReflect()
		for name, text := range body.params {
			field := m.Descriptor().Fields().ByName(protoreflect.Name(name))
			if field != nil && m.Has(field) && m.Get(field).String() != text {
				return fmt.Errorf("body: %s is not the one of the path", name)
			}
		}
		return nil
	})
}

// plain is the text of an error of package protojson without its prefix, whose white space varies from build to build.
func plain(err error) string {
	text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	return strings.TrimPrefix(text, "proto: ")
}

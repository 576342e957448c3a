// Command protodeps writes the .proto files that Setpoint's own files import, from the descriptors that their Go
// packages carry, so that one pinned Go module is the only source of each and nothing is fetched from a schema registry.
//
// Usage: protodeps DIR
package main

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	validate "buf.build/gen/go/bufbuild/protovalidate/protocolbuffers/go/buf/validate"
	"github.com/jhump/protoreflect/v2/protoprint"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/protobuf/reflect/protoreflect"
)

var files = []protoreflect.FileDescriptor{
	annotations.File_google_api_annotations_proto,
	annotations.File_google_api_http_proto,
	validate.File_buf_validate_validate_proto,
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("protodeps: ")
	if len(os.Args) != 2 {
		log.Fatal("usage: protodeps DIR")
	}
	for _, file := range files {
		if err := write(os.Args[1], file); err != nil {
			log.Fatal(err)
		}
	}
}

func write(dir string, file protoreflect.FileDescriptor) error {
	path := filepath.Join(dir, file.Path())
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the folder: %w", err)
	}
	out, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	printer := protoprint.Printer{Compact: true}
	if err := printer.PrintProtoFile(file, out); err != nil {
		return fmt.Errorf("print %s: %w", file.Path(), err)
	}
	return out.Close()
}

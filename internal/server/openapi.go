package server

import (
	_ "embed" // for the document
	"net/http"
)

// openAPIDocument describes the REST interface: OpenAPI 2.0, generated from the .proto files.
//
//go:embed openapi/setpoint.swagger.json
var openAPIDocument []byte

func openAPI(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(openAPIDocument) // A caller that has gone needs no answer.
}

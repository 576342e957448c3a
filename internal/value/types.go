package value

import (
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// The types, in short.
const (
	typeBoolean   = setpointv1.VariableType_VARIABLE_TYPE_BOOLEAN
	typeInteger   = setpointv1.VariableType_VARIABLE_TYPE_INTEGER
	typeFloat     = setpointv1.VariableType_VARIABLE_TYPE_FLOAT
	typeString    = setpointv1.VariableType_VARIABLE_TYPE_STRING
	typeChoice    = setpointv1.VariableType_VARIABLE_TYPE_CHOICE
	typeModule    = setpointv1.VariableType_VARIABLE_TYPE_MODULE
	typeEmbedding = setpointv1.VariableType_VARIABLE_TYPE_EMBEDDING
	typeTensor    = setpointv1.VariableType_VARIABLE_TYPE_TENSOR
	typeJSON      = setpointv1.VariableType_VARIABLE_TYPE_JSON
)

// The names of the types: in messages, in the database and on the command line.
var typeNames = map[setpointv1.VariableType]string{
	typeBoolean:   "boolean",
	typeInteger:   "integer",
	typeFloat:     "float",
	typeString:    "string",
	typeChoice:    "choice",
	typeModule:    "module",
	typeEmbedding: "embedding",
	typeTensor:    "tensor",
	typeJSON:      "json",
}

// TypeName returns the name of a type, like "integer"; "" for one that does not exist.
func TypeName(t setpointv1.VariableType) string {
	return typeNames[t]
}

// ParseType returns the type of a name that [TypeName] returns.
func ParseType(name string) (setpointv1.VariableType, bool) {
	for t, n := range typeNames {
		if n == name {
			return t, true
		}
	}
	return setpointv1.VariableType_VARIABLE_TYPE_UNSPECIFIED, false
}

// The element types of tensors and their sizes in bytes.
var dtypeSizes = map[string]int64{
	"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
	"int8": 1, "int16": 2, "int32": 4, "int64": 8,
	"uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8,
	"bool": 1,
}

// maxTensorRank is the greatest number of dimensions of a tensor.
const maxTensorRank = 32

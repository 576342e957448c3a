// Package value knows what a variable may hold: the nine types, the conversions between them, the constraints on a
// value, and the form in which the database keeps it. It knows neither gRPC nor SQL.
//
// A [Definition] is a type with its compiled constraints. [Definition.Accept] turns a value of the API into a [Stored]
// one or refuses it with a [*Refusal]; [Decode] is its inverse.
//
//	def, err := value.NewDefinition(setpointv1.VariableType_VARIABLE_TYPE_FLOAT, constraints)
//	stored, err := def.Accept("temperature", v, 16<<20)
//	back, err := value.Decode(def.Type(), stored.JSON, stored.Payload)
//
// # Conversions
//
//	variable                 takes, besides its own kind, and besides kind json in the type's JSON form
//	integer                  a whole number from -2^63 up to, not including, 2^63
//	float                    an integer, rounded to the nearest double beyond 2^53
//	string, choice, module   each other
//	json                     nothing else: a json value only
//
// The JSON forms: true; 7, 7.0 or "7"; 0.5, "0.5", "NaN", "Infinity" or "-Infinity"; "text"; a list of numbers (where the
// three names stand for themselves) for an embedding; {"dtype", "shape", "data"} with standard base64 for a tensor, all
// three and nothing else. A number that does not fit (2^63, "1e400", 1e39 in an embedding) is a TYPE_MISMATCH. So is an
// embedding without elements: no dimension is never meant.
//
// # The stored form
//
// JSON is written so that PostgreSQL's jsonb gives back what went in: doubles with the shortest digits that identify
// them and without exponent, as jsonb prints them, so that a size limit also holds for what is read back; NaN, the
// infinities and −0 of a float as the strings "NaN", "Infinity", "-Infinity" and "-0". Inside a json value −0 becomes 0,
// and NaN and the infinities, which JSON does not have, are refused. Object keys are sorted, so equal values have equal
// bytes. The elements of embeddings and tensors are kept apart, as little-endian bytes.
//
// # Bounds
//
// JSON nests at most 30 levels deep: protobuf for Python and C++ reads messages to a depth of 100, of which each JSON object
// takes three, so a deeper value could be written but not be read by everyone. Text is valid UTF-8 without U+0000.
// Patterns, JSON Schemas and the work of checking them are bounded too: no value and no constraint keeps a processor busy
// for more than seconds.
package value

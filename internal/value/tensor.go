package value

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
)

// tensorFault tells what is wrong with a tensor in itself; "" if nothing is.
func tensorFault(t *setpointv1.Tensor) string {
	want, why := tensorBytes(t.GetDtype(), t.GetShape())
	if why != "" {
		return why
	}
	if got := int64(len(t.GetData())); got != want {
		return fmt.Sprintf("a tensor of dtype %s and shape %s has %d bytes of data, not %d",
			t.GetDtype(), formatShape(t.GetShape()), want, got)
	}
	if t.GetDtype() == "bool" {
		if i := slices.IndexFunc(t.GetData(), func(b byte) bool { return b > 1 }); i >= 0 {
			return fmt.Sprintf("element %d of a tensor of dtype bool is %d, neither 0 nor 1", i, t.GetData()[i])
		}
	}
	return ""
}

// tensorBytes returns how many bytes the elements of a tensor take, or what is wrong with its dtype or shape. The sizes
// other than 0 must have a product within int64 even where some size is 0: array libraries cannot make the shape otherwise.
func tensorBytes(dtype string, shape []int64) (int64, string) {
	size, ok := dtypeSizes[dtype]
	if !ok {
		return 0, fmt.Sprintf("there is no dtype %s", quote(dtype))
	}
	if len(shape) > maxTensorRank {
		return 0, fmt.Sprintf("a tensor has at most %d dimensions, not %d", maxTensorRank, len(shape))
	}
	total, empty := size, false
	for _, n := range shape {
		switch {
		case n < 0:
			return 0, fmt.Sprintf("shape %s has a negative size", formatShape(shape))
		case n == 0:
			empty = true
		case total > math.MaxInt64/n:
			return 0, fmt.Sprintf("shape %s is too large", formatShape(shape))
		default:
			total *= n
		}
	}
	if empty {
		return 0, ""
	}
	return total, ""
}

// encodeVector returns the little-endian bytes of a vector.
func encodeVector(vector []float32) []byte {
	payload := make([]byte, 0, 4*len(vector))
	for _, f := range vector {
		payload = binary.LittleEndian.AppendUint32(payload, math.Float32bits(f))
	}
	return payload
}

// decodeVector is the inverse of encodeVector.
func decodeVector(payload []byte) []float32 {
	vector := make([]float32, len(payload)/4)
	for i := range vector {
		vector[i] = math.Float32frombits(binary.LittleEndian.Uint32(payload[4*i:]))
	}
	return vector
}

// euclideanNorm returns the L2 norm of the elements in a payload; false where the dtype is neither float32 nor float64.
func euclideanNorm(dtype string, payload []byte) (float64, bool) {
	switch dtype {
	case "float32":
		return norm(len(payload)/4, func(i int) float64 {
			return float64(math.Float32frombits(binary.LittleEndian.Uint32(payload[4*i:])))
		}), true
	case "float64":
		return norm(len(payload)/8, func(i int) float64 {
			return math.Float64frombits(binary.LittleEndian.Uint64(payload[8*i:]))
		}), true
	}
	return 0, false
}

// norm returns the L2 norm of n elements. Where the plain sum of squares leaves the range in which doubles are exact, it
// is taken again relative to the largest element.
func norm(n int, at func(int) float64) float64 {
	sum, largest := 0.0, 0.0
	for i := range n {
		f := at(i)
		sum += f * f
		largest = max(largest, math.Abs(f)) // NaN stays
	}
	if math.IsNaN(largest) || math.IsInf(largest, 0) || largest == 0 {
		return largest
	}
	if sum > 1e-280 && !math.IsInf(sum, 0) {
		return math.Sqrt(sum)
	}
	sum = 0
	for i := range n {
		f := at(i) / largest
		sum += f * f
	}
	return largest * math.Sqrt(sum)
}

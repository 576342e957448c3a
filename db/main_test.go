package db_test

import (
	"testing"

	"github.com/setpointdb/setpoint/internal/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }

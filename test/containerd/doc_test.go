// Package containerd_test runs real containerd daemons, with runc, on the snapshotter of dmlayer serve: 1.6 of Debian's packages, and 2.x built from the
// Go module proxy (scripts/deps containerd).
package containerd_test

import (
	"testing"

	"github.com/dmlayer/dmlayer/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

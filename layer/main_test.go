package layer_test

import (
	"testing"

	"github.com/dmlayer/dmlayer/test/pooltest"
)

func TestMain(m *testing.M) { pooltest.Main(m, childOperations) }

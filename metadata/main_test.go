package metadata_test

import (
	"testing"

	"github.com/dmlayer/dmlayer/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

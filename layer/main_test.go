package layer_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/test/pooltest"
)

func TestMain(m *testing.M) {
	if filepath.Base(os.Args[0]) == "lvm" {
		os.Exit(tracedLVM())
	}
	pooltest.Main(m, childOperations)
}

package layer_test

import (
	"context"
	"fmt"

	"github.com/dmlayer/dmlayer/test/pooltest"
)

func childSteps(context.Context, pooltest.Job) error { return fmt.Errorf("none") }

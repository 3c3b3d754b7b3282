package pool

import "context"

func Create(ctx context.Context, dirs Dirs, spec Spec) error              { return nil }
func Destroy(ctx context.Context, dirs Dirs, name string) error           { return nil }
func Start(ctx context.Context, dirs Dirs, name string) error             { return nil }
func Stop(ctx context.Context, dirs Dirs, name string) error              { return nil }
func List(ctx context.Context, dirs Dirs) ([]string, error)               { return nil, nil }
func Inspect(ctx context.Context, dirs Dirs, name string) (Status, error) { return Status{}, nil }
func ValidateName(kind, name string) error                                { return nil }

package vmexec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// slotDir is one folder for the whole machine, whoever the user and whatever the repository: the
// slots are what keeps several test runs at once from slowing each other down.
const slotDir = "/tmp/dmlayer-vm-slots"

// slot is the right to use one core. Every process that holds the open file holds the slot.
type slot struct {
	cpu  int
	lock *os.File
}

// takeSlot waits for a free core. After patience it says on w that it waits.
func takeSlot(ctx context.Context, dir string, cpus []int, patience time.Duration, w io.Writer) (*slot, error) {
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, fmt.Errorf("make the folder of the slots: %w", err)
	}
	_ = os.Chmod(dir, 0o777|os.ModeSticky) // against the umask; only the owner can, and need
	files := make([]*os.File, 0, len(cpus))
	for _, cpu := range cpus {
		f, err := openLock(filepath.Join(dir, fmt.Sprintf("cpu%d", cpu)))
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	for i, f := range files {
		if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err == nil {
			closeExcept(files, i)
			return &slot{cpus[i], f}, nil
		}
	}
	return waitSlot(ctx, files, cpus, patience, w)
}

// waitSlot queues at every slot and keeps the first that comes. The other goroutines give
// theirs back as soon as they get it; a process that ends takes them along.
func waitSlot(ctx context.Context, files []*os.File, cpus []int, patience time.Duration, w io.Writer) (*slot, error) {
	won := make(chan int)
	over := make(chan struct{})
	defer close(over)
	for i, f := range files {
		go func() {
			if err := flock(f, unix.LOCK_EX); err != nil {
				return
			}
			select {
			case won <- i:
			case <-over:
				_ = f.Close()
			}
		}()
	}
	long := time.NewTimer(patience)
	defer long.Stop()
	for {
		select {
		case i := <-won:
			return &slot{cpus[i], files[i]}, nil
		case <-long.C:
			fmt.Fprintf(w, "vmexec: waiting for one of %d cores; other virtual machines use them (%s)\n", len(cpus), filepath.Dir(files[0].Name()))
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for a core: %w", context.Cause(ctx))
		}
	}
}

func closeExcept(files []*os.File, keep int) {
	for i, f := range files {
		if i != keep {
			_ = f.Close()
		}
	}
}

// openLock opens a lock file of anybody. O_CREAT comes second: with fs.protected_regular not even
// root may use it on the file of another user in a sticky folder.
func openLock(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		f, err = os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o644)
	}
	if err != nil {
		return nil, fmt.Errorf("open slot: %w", err)
	}
	return f, nil
}

// allowedCPUs lists the cores that this process may run on.
func allowedCPUs() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return nil, fmt.Errorf("ask for the cores of this process: %w", err)
	}
	var cpus []int
	for i := 0; len(cpus) < set.Count(); i++ {
		if set.IsSet(i) {
			cpus = append(cpus, i)
		}
	}
	return cpus, nil
}

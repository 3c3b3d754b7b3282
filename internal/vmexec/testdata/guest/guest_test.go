// Package guest is run inside the virtual machine by the tests of package vmexec.
package guest

import (
	"fmt"
	"os"
	"testing"
)

func TestPass(t *testing.T) {
	if err := os.WriteFile(t.TempDir()+"/file", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("forbidden", nil, 0o600); err == nil {
		t.Error("the host's root file system is writable")
	}
	fmt.Println("kernel:", os.Getenv("DMLAYER_VM_GUEST"), os.Getenv("DMLAYER_VM"))
}

func TestFail(t *testing.T) { t.Error("failed on purpose") }

func TestPanic(t *testing.T) { panic("on purpose") }

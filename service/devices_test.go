package service

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestDeviceEvents(t *testing.T) {
	sys := t.TempDir()
	for name, uuid := range map[string]string{"dm-1": "DMLAYER-x-pool\n", "dm-2": "LVM-x\n"} {
		dir := filepath.Join(sys, "devices/virtual/block", name, "dm")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "uuid"), []byte(uuid), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	event := func(path string, more ...string) string {
		return strings.Join(append([]string{"change@" + path, "ACTION=change", "DEVPATH=" + path, "SUBSYSTEM=block"}, more...), "\x00") + "\x00"
	}
	for text, want := range map[string]bool{
		event("/devices/virtual/block/loop0", "RESIZE=1", "SEQNUM=7"): true,
		event("/devices/virtual/block/dm-2", "RESIZE=1"):              true,
		event("/devices/virtual/block/dm-1", "RESIZE=1"):              false,
		event("/devices/virtual/block/loop0", "SEQNUM=7"):             false,
		"change@/x\x00SUBSYSTEM=net\x00RESIZE=1\x00":                  false,
		"":                                   false,
		"libudev\x00\xfe\xed\xca\xfe":        false,
		event("../../../../etc", "RESIZE=1"): true,
	} {
		e := parseEvent([]byte(text))
		if got := e.resized && !e.own(sys); got != want {
			t.Errorf("%q: %+v", text, e)
		}
	}
}

// The kernel wakes a listener for the actions that he asks for, and for no others.
func TestDeviceActions(t *testing.T) {
	heard := make(chan string, 8)
	events, err := deviceEvents(t.Context(), func(e deviceEvent) bool {
		heard <- e.action
		return true
	}, "add")
	if err != nil {
		t.Fatal(err)
	}
	for _, action := range []string{"change", "add"} {
		if err := os.WriteFile("/sys/class/block/loop0/uevent", []byte(action), 0o200); err != nil {
			t.Fatal(err)
		}
	}
	<-events
	if first := <-heard; first != "add" {
		t.Errorf("woken for %q", first)
	}
}

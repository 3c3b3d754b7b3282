package vmexec

// backend is a kind of machine.
type backend struct {
	// machine describes what the reaper starts for a run.
	machine func(*virtualMachine) (*machine, error)
	// consoles are the guest's names of: standard output or the user's terminal, standard error,
	// frames of standard input.
	consoles [3]string
	// pinned says whether the machine runs on one core.
	pinned bool
}

var backends = map[string]backend{
	kindUML:    {umlMachine, [3]string{"/dev/tty1", "/dev/tty2", "/dev/tty3"}, true},
	kindQEMU:   {qemuMachine, [3]string{"/dev/hvc0", "/dev/hvc1", "/dev/hvc2"}, false},
	kindNative: {nativeMachine, [3]string{}, false},
}

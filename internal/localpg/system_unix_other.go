//go:build unix && !linux

package localpg

import "syscall"

// setParentDeathSignal has nothing to set: the next Start on the data directory stops what was left running.
func setParentDeathSignal(*syscall.SysProcAttr, syscall.Signal) {}

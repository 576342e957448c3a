//go:build !linux

package integration

import "syscall"

// dieWithParent is for Linux alone: elsewhere a child outlives a test binary that is killed.
func dieWithParent(*syscall.SysProcAttr) {}

package localpg

import (
	"errors"
	"os"
	"syscall"
)

// On Windows the client commands work; running PostgreSQL from here does not.
var errUnsupported = errors.New("running PostgreSQL from here works on Linux, macOS and other Unix systems only")

var interruptSignal, quitSignal = os.Interrupt, os.Kill

type account struct{ name string }

func (a account) other() bool { return false }

func (a account) give(string) error { return errUnsupported }

func accountFor(string) (account, error) { return account{}, errUnsupported }

func unprivileged() (account, error) { return account{}, errUnsupported }

func processAttributes(account, os.Signal) *syscall.SysProcAttr { return nil }

func tryLock(*os.File) (bool, error) { return false, errUnsupported }

func isAlive(int) bool { return false }

func sendSignal(int, os.Signal) error { return errUnsupported }

package lease

// Change is what became of an optimization.
type Change struct {
	Session, Optimization, Optimizer string
	// From is a state as the database names it; empty of a new one.
	From, To  string
	Variables []string
	// Reason is for people; empty where there is none.
	Reason string
}

// ServerPrincipal is who does what the clock has done.
const ServerPrincipal = "service:setpoint"

// Kept is the change of one that was to be preempted, and is not any more.
func Kept(session, optimization, optimizer string, variables []string) Change {
	return Change{
		Session: session, Optimization: optimization, Optimizer: optimizer, From: "preempting", To: "active",
		Variables: variables, Reason: "nobody is to preempt it any more",
	}
}

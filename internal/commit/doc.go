// Package commit merges concurrent calls into groups: group commit.
//
// # The protocol
//
// A Lane does one group at a time. A call that finds the lane idle goes at once, alone: there is no timer and no added
// latency. Calls that come while a group is on its way queue; the next group takes all of them that may share one. So
// groups grow with the load and with the time that a commit takes, and each costs about as much as a single call.
//
// What is authoritative: the group's transaction. A call is answered when the group that it was in has been committed or
// rolled back, and not before; Run says what became of each.
//
// What each failure does:
//
//   - The caller gives up while its call is queued: the call leaves the queue, and is not done.
//   - The caller gives up while its group is on its way: the caller is told so, and what becomes of the call is unknown to
//     it, as with any call of its own.
//   - A group fails: every call in it gets the error of Run, from which its caller decides whether to do it alone.
//   - Run panics: the same; the panic is the error.
//   - The lane is closed: calls in the queue fail with ErrClosed; the group on its way ends.
package commit

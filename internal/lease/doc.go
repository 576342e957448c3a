// Package lease has the room in which a server's callers wait for their leases, and this page: the protocol of optimizations.
//
// # What is authoritative
//
// The row of a variable holds its lease: the optimization that has it, the fencing token, and the time at which it is over
// (variables.optimization_id, fencing_token, lease_expires_at). A write asks that row and nothing else, in the statement that
// writes (the SQL function lease_refusal; VariableSet, SnapshotRestore and VariableLeaseRefusal ask it). The record in
// optimizations tells people and successors who, since when and why, and says what the row is to say next: its expires_at is
// the least of the times that may end it, computed by the database from
//
//	renewed_until   the last renewal or report, and ttl
//	progress_until  the last report, and progress_timeout
//	preempt_until   the grace of a preemption
//	wait_until      max_wait, while it waits
//
// and whoever changes one of them writes the row's lease_expires_at in the same statement. Time is the database's clock, read
// after the session's lock is held. No server, no client and no advisory lock is asked: a server holds nothing about a lease
// in its memory but who waits for one on it.
//
// Whoever changes a lease, a record or the queue holds the lock of the session's row. So all of it is in one order, that of the
// session's revisions, and a start that takes several variables takes all or none and cannot deadlock. The advisory locks of
// a start only have contenders queue outside of that row.
//
// # States
//
//	         start                 grant                    stop
//	 (new) ---------> WAITING ---------------> ACTIVE -----------------> COMPLETED, FAILED, CANCELLED
//	                     |                      |  ^
//	                     | stop, max_wait       |  | the preempting one is gone
//	                     |----> CANCELLED       v  |           stop
//	                     | not renewed       PREEMPTING -----------------> COMPLETED, FAILED, CANCELLED
//	                     '----> EXPIRED         |
//	                                            | grace is over: PREEMPTED
//	ACTIVE, PREEMPTING --- not renewed, no progress, the session's end ---> EXPIRED
//
// A start whose way is free passes WAITING within its transaction. The states on the right are for good.
//
// An optimization is over at the instant at which the clock passes its expires_at, whether or not anybody has written so: from
// then on every read says so (ends_as, ends_because), its writes are LEASE_LOST, and the variables can be had. Later somebody
// writes it down (OptimizationEnd), under the session's lock and therefore once: who starts or claims in the session, or the
// sweeper, which looks every second. That appends the history rows, tells the event, and changes nothing that a caller could
// have relied on.
//
// # The token
//
// A grant's token is one more than the greatest of its variables' rows, which keep theirs when a lease ends. A write has to present
// the optimization's id and its token, and both have to be those of the row, before the row's time: so of two that believe they
// hold a variable one is refused, whatever either of them knows, and whenever its request was sent.
//
// # The queue
//
// One row per optimization and variable that it waits for, in the order of (rank, ticket). The ticket is drawn under the
// session's lock; the rank is 0, and less for one that preempts, the less the higher its priority. A waiting optimization can be
// granted when no lease holds on any of its variables and nobody who is alive is before it in the queue of any of them: so
// nobody overtakes an older one for a part of its set.
//
// The grant is made for the waiting one, by the server on which it waits (AwaitOptimization) or that it asks
// (RenewOptimization): nobody is granted a lease who is not there to use it. One that is not there any more leaves the queue when its
// stay, which it has to renew as a lease, is over. Until then it holds up those behind it, and not longer. (A connection that
// is dead without having been closed is there until the server's keepalive has found out, some 40 s.)
//
// A server looks after all who wait on it together: at once when something in their session is freed by a call to it, and else four
// times a second, which is how late it sees what other servers, and the clock, have freed.
//
// # Preemption
//
// Who preempts joins the queue before those who wait, and its grace is on its own record. Those who have what it waits for are
// told its name and the end of its grace: of several, the name of the first and the shortest grace. They go on renewing and reporting,
// for which they still have to be alive, but not beyond that end. When one that preempts leaves the queue without a grant, what they
// are told is made anew from those who are left; if nobody is, they keep their leases, with the time that they have renewed for.
//
// # Failures
//
//	the holder crashes, hangs or is cut off   its lease is over ttl after its last renewal; what it sends later is LEASE_LOST
//	the holder is paused and wakes later      the same: its clock and its belief do not matter
//	the holder lives, but is stuck            progress_timeout ends the lease though it renews
//	a write waited for a lock as time passed  the clock is read after the lock: LEASE_LOST
//	a report comes after the end              recorded as late, answered OK; applied never, and its checkpoint not kept
//	the one that waits dies                   its stay is not renewed; those behind it go on when it is over
//	the server on which it waits dies         the queue is in the database: it awaits again on any server, at its old place
//	the server of the holder dies             any other renews the lease
//	the server that would grant dies          nothing was granted, or it was committed: awaiting again tells
//	the preempting one dies in the grace      when its stay is over the holder gets its time back, if it still has the lease
//	the database is away                      nobody can write, nobody can renew; leases go on by its clock
//	the session ends                          all of its leases and stays end with it
//	a variable is deleted under its lease     the lease goes on for the others; who waits for it is cancelled at its turn
//	an answer is lost                         a start, report or stop with its request_id is answered again; a report by its number
package lease
